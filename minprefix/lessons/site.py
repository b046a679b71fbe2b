"""The lessons as a static site: `minprefix lessons --out DIR`.

Each lesson has a page with its text beside its code and the code's output. There are an index, a
search, and a page for each source file that a lesson links to. No page asks the network for
anything. Beside this module lie `page.html`, the frame of each page, `pieces.html`, what stands in
it, and `site.css` and `site.js`, which are copied.
"""

import contextlib
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from minprefix.errors import InputError, listed, quoted
from minprefix.lessons import outputs, reading
from minprefix.lessons.reading import Cell, Lesson
from minprefix.lessons.running import Run, run_all
from minprefix.lessons.text import Page, highlighted, language_of
from minprefix.storage.reading import read_text

_HERE = Path(__file__).parent
_PACKAGE = _HERE.parent
#: the file that lists the files of a site
MARK = ".minprefix-lessons"
_LARGEST_FILE = 2**20  # bytes of a file that is shown as a page


@dataclass
class Site:
    """The record that all pages share."""

    folder: Path  # where the lessons come from
    known: list[str]  # the names of all lessons
    lessons: list[Lesson]  # those that have a page
    to: Path
    warnings: list[str] = field(default_factory=list)
    #: source file -> the lessons that link to it
    sources: dict[str, list[Lesson]] = field(default_factory=dict)
    #: links to headings: (page, fragment, the lesson and cell that link)
    pointed: list[tuple[str, str, str]] = field(default_factory=list)
    slugs: dict[str, set[str]] = field(default_factory=dict)  # lesson -> its headings
    written: list[str] = field(default_factory=list)

    def write(self, name: str, data: str | bytes) -> None:
        path = self.to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        self.written.append(name)


def build(
    paths: Sequence[Path], out: Path, run: Callable[[list[Lesson]], list[Run]] = run_all
) -> tuple[list[str], list[str]]:
    """-> warnings, and a sentence for each lesson that did not run; if there is one, `out` stays as
    it was. The lessons stand in one folder; `run` runs them."""
    reading.require_extra()
    folder = paths[0].parent
    known = [path.stem for path in reading.lesson_paths(folder)]
    lessons = [reading.read(path) for path in paths]
    _check_replaceable(out)
    runs = run(lessons)
    failures = [run.failure for run in runs if run.failure is not None]
    if failures:
        return [], failures
    with _in_place_of(out) as new:
        site = Site(folder, known, lessons, new)
        pages = [_lesson_page(site, run) for run in runs]
        for page, fragment, where in site.pointed:
            if fragment not in site.slugs.get(page, ()):
                site.warnings.append(f"{where}: {page} has no heading #{fragment}")
        _source_pages(site)
        _index_page(site, pages)
        _search_data(site, pages)
        for name in ("site.css", "site.js"):
            site.write(name, (_HERE / name).read_bytes())
        site.write(MARK, "\n".join(["a site of minprefix lessons; its files:", *site.written]))
    return site.warnings, []


# ---- the folder -------------------------------------------------------------------------------


def _check_replaceable(out: Path) -> None:
    """Only a folder that holds a site and nothing else is replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is no folder: give --out a folder, or a name that is not taken")
    place = next(parent for parent in Path(os.path.abspath(out)).parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} is no folder that can be written into: give --out another place")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / MARK).is_file():
        raise InputError(f"{out} is no site of lessons and not empty: give --out another folder")
    ours = {*read_text(out / MARK, "list of the site's files").split("\n")[1:], MARK}
    present = (Path(top, name) for top, _, names in os.walk(out) for name in names)
    more = sorted({p.relative_to(out).as_posix() for p in present} - ours)
    if more:
        raise InputError(
            f"{out} also holds {listed(more[:3])}, which would be lost with the old site: "
            "move it, or give --out another folder"
        )


@contextlib.contextmanager
def _in_place_of(out: Path) -> Iterator[Path]:
    """A new folder, which replaces `out` when the block ends without an error."""
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lessons-", dir=out.parent) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        yield new
        _check_replaceable(out)  # again: the lessons ran for minutes
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise


# ---- links ------------------------------------------------------------------------------------


def _target(site: Site, lesson: Lesson, href: str, where: str) -> str | None:
    """A lesson's link as its page has it; None, with a warning, if it is dead."""
    try:
        return _live(site, lesson, href, where)
    except InputError as error:
        site.warnings.append(f"{where}: the link {quoted(href)} is dead: {error}")
        return None


def _live(site: Site, lesson: Lesson, href: str, where: str) -> str:
    if href.startswith(("https://", "http://")):
        return href
    parts = urlsplit(href)
    if parts.scheme or parts.netloc:
        raise InputError("it is no address of the web and no file")
    fragment = unquote(parts.fragment)
    place = posixpath.normpath(f"tutorials/{unquote(parts.path) or lesson.path.name}")
    name = posixpath.basename(place).removesuffix(".py")
    if place == f"tutorials/{name}.py":
        if name not in site.known:
            raise InputError("there is no such lesson")
        if name in [other.name for other in site.lessons]:
            if fragment:
                site.pointed.append((name, fragment, where))
            at = f"#{parts.fragment}" if fragment else ""
            return f"{name}.html{at}" if parts.path else at
    line = _line(read_text(_house(site, place), "file", _LARGEST_FILE), fragment)
    if line is None:
        raise InputError(f"{place} has no line and no name {quoted(fragment)}")
    linking = site.sources.setdefault(place, [])
    if lesson not in linking:
        linking.append(lesson)
    return f"files/{quote(place)}.html{line}"


def _house(site: Site, place: str) -> Path:
    """The path of a file, in a clone and in an installation."""
    if place.startswith("minprefix/"):
        path, top = _PACKAGE.parent / place, _PACKAGE
    else:
        path = site.folder / posixpath.relpath(place, "tutorials")
        top = site.folder.parent
    if not path.resolve().is_relative_to(top.resolve()):
        raise InputError(f"{place} is outside of this project")
    return path


def _line(source: str, fragment: str) -> str | None:
    """The anchor that a fragment means: `L20` that line, a name the line that defines it; None if
    there is no such line."""
    lines = source.splitlines()
    if not fragment:
        return ""
    if re.fullmatch(r"L\d+", fragment):
        return f"#{fragment}" if 1 <= int(fragment[1:]) <= len(lines) else None
    name = re.compile(rf"\s*(?:(?:def|class) {re.escape(fragment)}\b|{re.escape(fragment)} *[:=])")
    found = (f"#L{number}" for number, line in enumerate(lines, start=1) if name.match(line))
    return next(found, None)


# ---- pages ------------------------------------------------------------------------------------


@cache
def _pieces() -> dict[str, str]:
    """The texts of pieces.html by name. There, a line break beside a tag or a part is layout."""
    text = (_HERE / "pieces.html").read_text(encoding="utf-8")
    text = re.sub(r"(?<=[>@])\n *|\n *(?=[<@])", "", text)
    _, *named = re.split(r"<!-- (\w+) -->", re.sub(r"\n *", " ", text))
    return dict(zip(named[::2], named[1::2], strict=True))


def _filled(text: str, /, **parts: object) -> str:
    """`text` with each @name@ replaced in one go, so that a marker in a lesson's text stays."""
    return re.sub(r"@(\w+)@", lambda m: str(parts[m[1]]), text)


def _piece(name: str, /, **parts: object) -> str:
    """A piece of HTML; its parts are HTML, too."""
    return _filled(_pieces()[name], **parts)


def _write_page(site: Site, name: str, title: str, kind: str, main: str, rel: str = "") -> None:
    root = "../" * name.count("/")
    every = "".join(
        _piece(
            "listed",
            number=other.number,
            page=root + other.page,
            current=' aria-current="page"' if name == other.page else "",
            title=escape(other.plain),
        )
        for other in site.lessons
    )
    frame = (_HERE / "page.html").read_text(encoding="utf-8")
    title = escape(f"{title}minprefix lessons")
    page = _filled(frame, title=title, root=root, kind=kind, main=main, all=every, rel=rel)
    site.write(name, page)


def _lesson_page(site: Site, run: Run) -> Page:
    lesson = run.lesson
    at = 1  # the cell that is being set

    def where() -> str:
        return f"{lesson.name}, cell {at}"

    def warn(what: str) -> None:
        site.warnings.append(f"{where()}: {what}")

    page = Page(lambda href: _target(site, lesson, href, where()), warn)
    for fault in lesson.faults:
        warn(fault)
    page.title = page.inline(lesson.title)
    page.items = {name: page.inline(text) for name, text in lesson.items.items()}
    rows: list[tuple[str, list[str]]] = [("", [])]
    predicts = False
    for cell in lesson.cells:
        at = cell.number
        if cell.kind == "text":
            if predicts:
                warn("this text stands between a prediction and the code that answers it")
            rows += [(piece, []) for piece in page.html(cell.source)]
            predicts = page.predicts(cell.source)
        elif cell.source.strip():
            page.sections[-1].code.append(cell.source)
            rows[-1][1].append(_code_cell(site, run, cell, predicts, warn))
            predicts = False
    if predicts:
        warn("no code answers this prediction")
    site.slugs[lesson.name] = {section.slug for section in page.sections}
    site.write(f"{lesson.name}.py", lesson.path.read_bytes())
    body = "".join(_row(text, "".join(beside)) for text, beside in rows if text or beside)
    rel, links = _neighbours(site, lesson)
    main = f"{_opening(lesson, page)}\n{body}{links}"
    _write_page(site, lesson.page, f"{lesson.label} · ", "lesson", main, rel)
    return page


def _row(text: str, beside: str) -> str:
    if not beside:
        return _piece("alone", text=text) + "\n"
    return _piece("row", text=text, none="" if text else " none", beside=beside) + "\n"


def _code_cell(site: Site, run: Run, cell: Cell, folded: bool, warn: Callable[[str], None]) -> str:
    """`folded`: the cell answers a prediction, so its output waits for a click."""
    number, pictures = cell.number, count(1)

    def save(ending: str, data: bytes) -> str:
        name = f"pictures/{run.lesson.name}-{number}-{next(pictures)}{ending}"
        site.write(name, data)
        return name

    lines = "".join(highlighted(cell.source.strip("\n"), "python", f"c{number}-"))
    gave = outputs.shown(run.outputs.get(number, []), save, warn)
    if folded and not gave:
        warn("answers a prediction, and shows nothing")
    if gave:
        gave = _piece("gave", gave=gave)
        gave = _piece("answer", gave=gave) if folded else gave
    return _piece("cell", number=number, lines=lines, gave=gave)


def _opening(lesson: Lesson, page: Page) -> str:
    facts = (_piece("fact", name=escape(name), text=text) for name, text in page.items.items())
    contents = (
        _piece("heading", level=section.level, slug=section.slug, title=escape(section.title))
        for section in page.sections
        if section.level in (2, 3)
    )
    return _piece(
        "opening",
        number=lesson.number,
        title=page.title,
        facts="".join(facts),
        contents="".join(contents),
        script=f"{lesson.name}.py",
    )


def _neighbours(site: Site, lesson: Lesson) -> tuple[str, str]:
    """The lessons before and after: for the page's head, and for its end."""
    i, rel, links = site.lessons.index(lesson), "", ""
    for found, side, which, said in (
        (site.lessons[:i][-1:], "before", "prev", "Previous"),
        (site.lessons[i + 1 :][:1], "after", "next", "Next"),
    ):
        for other in found:
            rel += f'<link rel="{which}" href="{other.page}">\n'
            label = escape(other.label)
            links += _piece(
                "neighbour", side=side, rel=which, page=other.page, said=said, label=label
            )
    return rel, _piece("neighbours", links=links)


def _index_page(site: Site, pages: Sequence[Page]) -> None:
    entries = ""
    for lesson, page in zip(site.lessons, pages, strict=True):
        hard = lesson.difficulty
        shown = "" if hard is None else "●" * hard + "○" * (3 - hard)
        entries += _piece(
            "entry",
            number=lesson.number,
            page=lesson.page,
            title=page.title,
            able=page.items.get("You will be able to", "…"),
            need=page.items.get("You need", "…"),
            minutes="" if lesson.minutes is None else f"{lesson.minutes} min",
            dots=_piece("dots", difficulty=hard, dots=shown) if shown else "",
        )
    total = sum(lesson.minutes or 0 for lesson in site.lessons)
    time = f"{total / 60:.0f} hours" if total >= 90 else f"{total} minutes"
    main = _piece("index", lessons=len(site.lessons), time=time, entries=entries)
    _write_page(site, "index.html", "", "index", main)


def _source_pages(site: Site) -> None:
    for place, linking in site.sources.items():
        source = read_text(_house(site, place), "file", _LARGEST_FILE)
        lines = "".join(highlighted(source, language_of(place), "L"))
        name = f"files/{place}.html"
        root = "../" * name.count("/")
        back = ", ".join(f'<a href="{root}{one.page}">{escape(one.label)}</a>' for one in linking)
        main = _piece("file", place=escape(place), back=back, lines=lines)
        _write_page(site, name, f"{place} · ", "file", main)


def _search_data(site: Site, pages: Sequence[Page]) -> None:
    """A script and not JSON: a page that is opened as a file may not fetch."""
    found = [
        {
            "page": lesson.page,
            "lesson": lesson.label,
            "slug": section.slug,
            "title": section.title,
            "text": "\n".join(section.text),
            "code": "\n".join(section.code),
        }
        for lesson, page in zip(site.lessons, pages, strict=True)
        for section in page.sections
    ]
    data = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    site.write("search.js", f"window.lessonSections = {data};\n")
