"""`minprefix bench`: this project and its peers on the same work."""

from minprefix.bench.options import add_options
from minprefix.cli.parser import Command


def add(command: Command) -> None:
    p = command(
        "bench",
        None,
        "measure this project and its peers on the same work, in alternating fresh processes",
        "minprefix bench all --json bench.json, and its page: minprefix bench report bench.json",
    )
    add_options(p)
