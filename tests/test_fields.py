"""Options that are made from the fields of a dataclass."""

import argparse
from dataclasses import dataclass, field, fields

import pytest

from minprefix.cli.fields import add_fields, given
from minprefix.settings import Job, Settings


@dataclass
class Sizes:
    width: int = field(default=0, metadata={"help": "in %"})
    factor: float | None = field(default=None, metadata={"help": "of it", "unsaid": 2.5})
    shape: str = field(default="round", metadata={"help": "looks", "choices": ("round", "flat")})
    ids: tuple[int, ...] = field(default=(), metadata={"help": "some"})
    layers: list[int] | None = field(default=None, metadata={"help": "layers"})
    quick: bool = field(default=False, metadata={"help": "or not"})


def test_a_field_of_a_dataclass_is_an_option_with_its_help_and_its_default():
    parser = argparse.ArgumentParser()
    layers = {"layers": lambda text: [int(part) for part in text.split(",")]}
    add_fields(parser, Sizes, [f.name for f in fields(Sizes)], layers)
    said = " ".join(parser.format_help().split())
    for words in (
        "--width N in % (default 0)", "--factor X of it (default 2.5)",
        "--shape {round,flat} looks (default round)", "--quick or not",
    ):  # fmt: skip
        assert words in said
    assert given(parser.parse_args([]), Sizes) == {}
    typed = "--width 3 --factor 0.5 --shape flat --ids 4 5 --layers 1,2 --quick"
    assert given(parser.parse_args(typed.split()), Sizes) == {
        "width": 3, "factor": 0.5, "shape": "flat", "ids": [4, 5], "layers": [1, 2], "quick": True,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--shape", "odd"])


def test_the_defaults_of_the_command_line_are_those_of_the_library():
    for name, f in Settings.__dataclass_fields__.items():
        if name not in ("steps", "lr"):  # from --epochs; by the kind of prefix
            assert Job.__dataclass_fields__[name].default == f.default
    assert Job().unsaid()["lr"] == Settings(steps=1).lr
