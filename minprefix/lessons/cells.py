"""A lesson's cells as the body of its page: text beside code, predictions and exercises folded.

A prediction is a text that ends with `**Predict.**`, the code that answers it, and a text that
begins with `**Answer.**`; code, output and answer wait for one click. An exercise is a heading
`### Exercise 5.2: ...` with its minutes and difficulty, the reader's stub, hints, and a hidden cell
with our solution. A page warns of what does not have this form.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from itertools import count

from minprefix.errors import counted, quoted
from minprefix.lessons import outputs
from minprefix.lessons.pieces import dots, piece
from minprefix.lessons.reading import COST, EXERCISE, Cell
from minprefix.lessons.running import Run
from minprefix.lessons.text import Page, highlighted

_HEADING = re.compile(r'<h(?P<level>\d) id="[^"]*">(?P<title>.*?)</h\d>', re.DOTALL)
_COST = re.compile(rf"<p><em>{COST.pattern}</em></p>")
_ANSWER = "**Answer.**"


@dataclass
class _Row:
    """A text and what stands beside it."""

    text: str
    beside: list[str] = field(default_factory=list)

    def html(self) -> str:
        if not self.beside:
            return piece("alone", text=self.text) + "\n" if self.text else ""
        none, beside = "" if self.text else " none", "".join(self.beside)
        return piece("row", text=self.text, none=none, beside=beside) + "\n"


@dataclass
class _Block:
    """Rows that belong together: an exercise, or what stands between two of them."""

    exercise: str | None = None  # its number
    rows: list[_Row] = field(default_factory=list)
    has: set[str] = field(default_factory=set)  # of the parts of an exercise

    def html(self) -> str:
        inside = "".join(row.html() for row in self.rows)
        return piece("exercise", rows=inside) + "\n" if self.exercise else inside


@dataclass
class _Fold:
    """A prediction whose answer is being read."""

    cells: list[str] = field(default_factory=list)
    last: int = 0  # its last code cell
    shows: bool = False


class Body:
    """Takes the cells in order; `html` is the body of the page.

    `save` takes a picture's name and bytes; `warn` is told what is wrong, and in which cell.
    """

    def __init__(
        self,
        run: Run,
        page: Page,
        save: Callable[[str, bytes], None],
        warn: Callable[[str, int], None],
    ) -> None:
        self.run, self.page, self.save, self._warn = run, page, save, warn
        self.blocks = [_Block(rows=[_Row("")])]
        self.fold: _Fold | None = None
        self.at = 1  # the cell that is being set
        self.exercises = 0

    def warn(self, what: str) -> None:
        self._warn(what, self.at)

    def take(self, cell: Cell) -> None:
        self.at = cell.number
        if cell.kind == "text":
            self._text(cell.source)
        elif cell.source.strip():
            self.page.sections[-1].code.append(cell.source)
            self._code(cell)

    def html(self) -> str:
        """After the last cell."""
        self._end_of_fold(None)
        self._end_of_exercise()
        return "".join(block.html() for block in self.blocks)

    # ---- text -------------------------------------------------------------------------------

    def _text(self, source: str) -> None:
        if self._answers(source):
            return
        self._end_of_fold(source)
        for part in self.page.html(source):
            heading = _HEADING.match(part)
            if heading:
                self._end_of_exercise()
                if heading["level"] == "3" and heading["title"].startswith("Exercise"):
                    self._exercise(re.sub("<[^>]+>", "", heading["title"]))
            if self.blocks[-1].exercise:
                part = self._in_exercise(part)
            self.blocks[-1].rows.append(_Row(part))
        if self.page.predicts(source):
            self.fold = _Fold()

    def _answers(self, source: str) -> bool:
        """Whether the text is the answer of a prediction, which then ends."""
        begins = source.lstrip().startswith(_ANSWER)
        if not begins and re.search(r"^\*\*Answer", source, re.MULTILINE):
            self.warn(f"an answer is a cell of its own that begins with `{_ANSWER}`")
        if begins and (self.fold is None or not self.fold.cells):
            self.warn(f"`{_ANSWER}` stands behind no prediction with its code")
        if not begins or self.fold is None or not self.fold.cells:
            return False
        if self.page.predicts(source):
            self.warn("an answer ends with a prediction: begin a new cell")
        parts = self.page.html(source)
        if any(map(_HEADING.match, parts)):
            self.warn("an answer holds a heading: begin a new cell")
        self._close_fold(self.fold, "".join(parts))
        return True

    def _end_of_fold(self, source: str | None) -> None:
        """Where no answer stands: before another text, or at the end."""
        if self.fold is None:
            return
        if not self.fold.cells:
            between = "this text stands between a prediction and the code that answers it"
            self.warn("no code answers this prediction" if source is None else between)
            self.fold = None
            return
        self._warn(
            f"answers a prediction: the text behind it has to begin with `{_ANSWER}`",
            self.fold.last,
        )
        self._close_fold(self.fold, "")

    def _close_fold(self, fold: _Fold, said: str) -> None:
        if not fold.shows:
            self._warn("answers a prediction, and shows nothing", fold.last)
        said = piece("said", said=said) if said else ""
        fold_html = piece("answer", cells="".join(fold.cells), said=said)
        self.blocks[-1].rows[-1].beside.append(fold_html)
        self.fold = None

    # ---- exercises --------------------------------------------------------------------------

    def _exercise(self, title: str) -> None:
        self.exercises += 1
        expected = f"{self.run.lesson.number}.{self.exercises}"
        found = EXERCISE.fullmatch(" ".join(title.split()))
        number = f"{found['lesson']}.{found['number']}" if found else None
        if number is None:
            self.warn(f"{quoted(title)} is not of the form `Exercise {expected}: name`")
        elif number != expected:
            self.warn(f"exercise {number} is the lesson's {expected}")
        self.blocks.append(_Block(number or expected))

    def _in_exercise(self, part: str) -> str:
        """A text of an exercise, with its cost drawn."""
        block = self.blocks[-1]
        if _COST.search(part):
            block.has.add("line `*8 minutes · difficulty 2 of 5*`")
        if "<summary>Hint" in part:
            block.has.add("hint")
        return _COST.sub(_cost, part)

    def _end_of_exercise(self) -> None:
        """After our solution, before the next heading, and at the end."""
        block = self.blocks[-1]
        if not block.exercise:
            return
        wanted = ("line `*8 minutes · difficulty 2 of 5*`", "stub", "hint", "hidden cell of ours")
        lacking = [part for part in wanted if part not in block.has]
        if lacking:
            self.warn(f"exercise {block.exercise} lacks: {', '.join(lacking)}")
        self.blocks.append(_Block())

    # ---- code -------------------------------------------------------------------------------

    def _code(self, cell: Cell) -> None:
        shown, gave = self._cell(cell)
        if self.fold is not None:
            self.fold.cells.append(shown)
            self.fold.last = cell.number
            self.fold.shows |= bool(gave)
            return
        block = self.blocks[-1]
        if not block.rows:
            block.rows.append(_Row(""))
        beside = block.rows[-1].beside
        if not cell.hidden:
            block.has.add("stub")
            beside.append(shown)
            return
        beside.append(piece("ours", names=self._names(cell), cell=shown))
        if not block.exercise:
            self.warn("is hidden, and belongs to no exercise")
        block.has.add("hidden cell of ours")
        self._end_of_exercise()

    def _names(self, cell: Cell) -> str:
        """The functions that a hidden cell defines."""
        body = ast.parse(cell.source).body
        names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        if len(names) < len(body):
            self.warn("is hidden, and holds more than functions")
        return ", ".join(f"<code>{escape(name)}</code>" for name in names)

    def _cell(self, cell: Cell) -> tuple[str, str]:
        """-> the cell with its output, and that alone."""
        number, pictures = cell.number, count(1)

        def save(ending: str, data: bytes) -> str:
            name = f"pictures/{self.run.lesson.name}-{number}-{next(pictures)}{ending}"
            self.save(name, data)
            return name

        lines = "".join(highlighted(cell.source.strip("\n"), "python", f"c{number}-"))
        gave = outputs.shown(self.run.outputs.get(number, []), save, self.warn)
        gave = piece("gave", gave=gave) if gave else ""
        return piece("cell", number=number, lines=lines, gave=gave), gave


def _cost(found: re.Match[str]) -> str:
    minutes = counted(int(found["minutes"]), "minute")
    return piece("cost", minutes=minutes, dots=dots(int(found["difficulty"])))
