"""python -m antdt.launch: the same as `antdt launch`."""

from antdt.launch.command import main

main(prog_name="antdt launch")
