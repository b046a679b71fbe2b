"""A lesson as it is written: a script in percent format, with a head and cells of text and code.

jupytext splits it, so that a page shows the same cells as a notebook.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from minprefix.errors import InputError, listed, quoted
from minprefix.storage.reading import read_text

_PACKAGE = Path(__file__).parents[1]
#: inside the package in a wheel, beside the package's folder in a clone
FOLDER = next(
    (p for p in (_PACKAGE / "tutorials", _PACKAGE.parent / "tutorials") if p.exists()), None
)
#: what the extra `lessons` installs, by the names of the modules
# fmt: off
_NEEDED = (
    "jupytext", "nbformat", "nbclient", "ipykernel", "markdown_it", "mdit_py_plugins",
    "latex2mathml", "pygments",
)
# fmt: on
_ITEMS = ("You will be able to", "You need", "Time", "Difficulty")
_HEAD = re.compile(r"# (?P<title>.+)\n+(?P<items>(?:- .*\n(?:  .*\n)*)*)")
_ITEM = re.compile(r"- \*\*(?P<name>.+?)\*\*[ \n](?P<text>.*(?:\n  .*)*)", re.MULTILINE)
#: item -> its form, and an example
_FORMS = {
    "Time": (r"(\d+) minutes; it runs in (\d+) seconds?\.", "30 minutes; it runs in 1 second."),
    "Difficulty": (r"([1-5]) of 5\.", "2 of 5."),
}
#: an exercise in the flow of a lesson: its heading, and the line below it
EXERCISE = re.compile(r"Exercise (?P<lesson>\d+)\.(?P<number>\d+): (?P<title>.+)")
COST = re.compile(r"(?P<minutes>\d+) minutes? · difficulty (?P<difficulty>[1-5]) of 5")
_EXERCISE = re.compile(rf"^### {EXERCISE.pattern}\n+\*{COST.pattern}\*$", re.MULTILINE)
GLOSSARY = "glossary"


@dataclass(frozen=True)
class Cell:
    number: int  # from 1, as a notebook counts them
    kind: Literal["text", "code"]
    source: str
    hidden: bool = False  # of a notebook, by the mark `jupyter={"source_hidden": true}`


@dataclass(frozen=True)
class Lesson:
    """A lesson, or the glossary, which has no number."""

    path: Path
    cells: list[Cell]  # the first without the head
    title: str
    items: dict[str, str]  # of the head, as Markdown
    faults: list[str]  # of the head

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> int:
        return int(self.name.split("_")[0])

    @property
    def page(self) -> str:
        return f"{self.name}.html"

    @property
    def plain(self) -> str:
        """The title without markup."""
        return self.title.replace("`", "")

    @property
    def label(self) -> str:
        return self.plain if self.name == GLOSSARY else f"{self.number}. {self.plain}"

    @property
    def minutes(self) -> int | None:
        return self._number("Time", 1)

    @property
    def seconds(self) -> int | None:
        """The time that it runs on a machine that does nothing else."""
        return self._number("Time", 2)

    @property
    def difficulty(self) -> int | None:
        return self._number("Difficulty", 1)

    @property
    def exercises(self) -> list[tuple[int, int]]:
        """Minutes and difficulty of each exercise that is written in the flow."""
        text = "\n\n".join(cell.source for cell in self.cells if cell.kind == "text")
        found = _EXERCISE.finditer(text)
        return [(int(one["minutes"]), int(one["difficulty"])) for one in found]

    def _number(self, item: str, group: int) -> int | None:
        found = re.fullmatch(_FORMS[item][0], self.items.get(item, ""))
        return int(found[group]) if found else None


def require_extra() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(
            f"lessons are read and built with {listed(missing)}, not installed here: "
            "pip install 'minprefix[lessons]'"
        )


def lesson_paths(folder: Path | None = None) -> list[Path]:
    folder = folder or FOLDER
    found = [] if folder is None else sorted(folder.glob("[0-9][0-9]_*.py"))
    if not found:
        raise InputError(f"no lessons (NN_name.py) in {folder or 'this installation'}")
    return found


def named(names: Iterable[str], paths: list[Path]) -> list[Path]:
    """The lessons that `4`, `04`, `04_attention` or a path names; all of them without a name."""
    chosen = {path for name in names for path in [_meant(name, paths)]}
    return [path for path in paths if path in chosen] or paths


def _meant(name: str, paths: list[Path]) -> Path:
    stem = Path(name).name.removesuffix(".py")
    for path in paths:
        number, _, word = path.stem.partition("_")
        if stem in (path.stem, word) or (stem.isdecimal() and int(stem) == int(number)):
            return path
    known = {form: path.stem for path in paths for form in (path.stem, path.stem.partition("_")[2])}
    near = dict.fromkeys(known[k] for k in difflib.get_close_matches(stem, known, 3, 0.4))
    said = f"did you mean {' or '.join(near)}?" if near else "`minprefix lessons` lists them"
    raise InputError(f"there is no lesson {quoted(name)}: {said}")


def read(path: Path) -> Lesson:
    """Raises InputError for a file that is not text; mistakes of the head are in `faults`."""
    import jupytext

    text = read_text(path, "lesson")
    found = jupytext.reads(text, fmt="py:percent").cells
    cells = [
        Cell(i, "code" if cell.cell_type == "code" else "text", cell.source, _hidden(cell.metadata))
        for i, cell in enumerate(found, start=1)
    ]
    faults = []
    first = cells[0].source if cells and cells[0].kind == "text" else ""
    head = _HEAD.match(first + "\n")
    title, items = path.stem, {}
    if head is None:
        faults.append("the first cell is no text that begins with `# Title`")
    else:
        title = head["title"].strip()
        cells[0] = Cell(1, "text", first[head.end() :].strip("\n"))
        for item in _ITEM.finditer(head["items"]):
            items[item["name"]] = " ".join(item["text"].split())
        faults += _faults(items)
    return Lesson(path, cells, title, items, faults)


def _hidden(metadata: Any) -> bool:
    return bool(metadata.get("jupyter", {}).get("source_hidden"))


def glossary(folder: Path) -> Lesson | None:
    """The page of terms that stands beside the lessons; None without it."""
    path = folder / f"{GLOSSARY}.md"
    if not path.exists():
        return None
    first, _, rest = read_text(path, "glossary").partition("\n")
    title = first.removeprefix("# ")
    faults = [] if first.startswith("# ") else ["it does not begin with `# Title`"]
    return Lesson(path, [Cell(1, "text", rest.strip("\n"))], title, {}, faults)


def _faults(items: dict[str, str]) -> list[str]:
    faults = [
        f"the head lacks an item `- **{name}** ...`" for name in _ITEMS if not items.get(name)
    ]
    more = [name for name in items if name not in _ITEMS]
    if more:
        faults.append(f"the head has an item that is none of the four: {listed(more)}")
    elif not faults and list(items) != list(_ITEMS):
        faults.append(f"the items of the head are not in the order {', '.join(_ITEMS)}")
    for name, (form, example) in _FORMS.items():
        if items.get(name) and not re.fullmatch(form, items[name]):
            faults.append(f"{name} {quoted(items[name])} is not of the form `{example}`")
    return faults
