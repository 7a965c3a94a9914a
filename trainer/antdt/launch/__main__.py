"""python -m antdt.launch: the same as `antdt launch`."""

from antdt.launch.launcher import main

main(prog_name="antdt launch")
