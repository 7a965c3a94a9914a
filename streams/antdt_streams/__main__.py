"""python -m antdt_streams: the same as the command `antdt`."""

from antdt_streams.cli.main import main

main(prog_name="antdt")
