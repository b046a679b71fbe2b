"""GPT-2 itself, for the lessons that use it where it is at hand."""

import os

from minprefix.model import GPT2


def real_gpt2() -> GPT2 | None:
    """GPT-2 (124M) from the folder or under the name that the environment variable MINPREFIX_GPT2
    gives; None without it. Nothing is fetched unless that name asks for it."""
    name = os.environ.get("MINPREFIX_GPT2")
    return GPT2.load(name) if name else None
