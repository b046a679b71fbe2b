"""The lessons as a static site: `minprefix lessons --out DIR`.

Each lesson has a page with its text beside its code and the code's output. There are an index, a
search, the glossary, and a page for each source file that a lesson links to. No page asks the
network for anything. Beside this module lie `page.html`, the frame of each page, `pieces.html`,
what stands in it, and `site.css` and `site.js`, which are copied.
"""

import contextlib
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from minprefix.errors import InputError, counted, listed, quoted
from minprefix.lessons import reading
from minprefix.lessons.cells import Body
from minprefix.lessons.pieces import dots, filled, piece
from minprefix.lessons.reading import Lesson
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
    glossary: Lesson | None = None
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
        site = Site(folder, known, lessons, new, reading.glossary(folder))
        pages = [_lesson_page(site, run) for run in runs]
        found = list(zip(lessons, pages, strict=True))
        if site.glossary:
            found.append((site.glossary, _glossary_page(site, site.glossary)))
        for page, fragment, where in site.pointed:
            if fragment not in site.slugs.get(page, ()):
                site.warnings.append(f"{where}: {page} has no heading #{fragment}")
        _source_pages(site)
        _index_page(site, pages)
        _search_data(site, found)
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
        fragment = ""  # a heading, which its script has as a comment
    if site.glossary and place == f"tutorials/{site.glossary.path.name}":
        if fragment:
            site.pointed.append((site.glossary.name, fragment, where))
        at = f"#{parts.fragment}" if fragment else ""
        return f"{site.glossary.page}{at}" if parts.path else at
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


def _write_page(site: Site, name: str, title: str, kind: str, main: str, rel: str = "") -> None:
    root = "../" * name.count("/")
    every = "".join(
        piece(
            "listed",
            number=other.number,
            page=root + other.page,
            current=' aria-current="page"' if name == other.page else "",
            title=escape(other.plain),
        )
        for other in site.lessons
    )
    if site.glossary:
        every += piece(
            "unnumbered",
            page=root + site.glossary.page,
            current=' aria-current="page"' if name == site.glossary.page else "",
            title=escape(site.glossary.plain),
        )
    frame = (_HERE / "page.html").read_text(encoding="utf-8")
    title = escape(f"{title}minprefix lessons")
    page = filled(frame, title=title, root=root, kind=kind, main=main, all=every, rel=rel)
    site.write(name, page)


@dataclass
class _Place:
    """What is being set, for the warnings."""

    site: Site
    lesson: Lesson
    cell: int = 1

    def warn(self, what: str, cell: int | None = None) -> None:
        self.site.warnings.append(f"{self.named(cell)}: {what}")

    def named(self, cell: int | None = None) -> str:
        if self.lesson.name == reading.GLOSSARY:
            return self.lesson.path.name
        return f"{self.lesson.name}, cell {cell or self.cell}"

    def target(self, href: str) -> str | None:
        return _target(self.site, self.lesson, href, self.named())

    def page(self) -> Page:
        """The page, with its head."""
        page = Page(self.target, self.warn)
        for fault in self.lesson.faults:
            self.warn(fault)
        page.title = page.inline(self.lesson.title)
        page.items = {name: page.inline(text) for name, text in self.lesson.items.items()}
        return page


def _lesson_page(site: Site, run: Run) -> Page:
    lesson = run.lesson
    place = _Place(site, lesson)
    page = place.page()
    cells = Body(run, page, site.write, place.warn)
    for cell in lesson.cells:
        place.cell = cell.number
        cells.take(cell)
    body = cells.html()
    site.slugs[lesson.name] = {section.slug for section in page.sections}
    site.write(f"{lesson.name}.py", lesson.path.read_bytes())
    rel, links = _neighbours(site, lesson)
    main = f"{_opening(lesson, page)}\n{body}{links}"
    _write_page(site, lesson.page, f"{lesson.label} · ", "lesson", main, rel)
    return page


def _glossary_page(site: Site, glossary: Lesson) -> Page:
    page = _Place(site, glossary).page()
    body = "".join(piece("term", text=text) for text in page.html(glossary.cells[0].source))
    site.slugs[glossary.name] = {section.slug for section in page.sections}
    main = piece("glossary", title=page.title, body=body)
    _write_page(site, glossary.page, f"{glossary.plain} · ", "glossary", main)
    return page


def _opening(lesson: Lesson, page: Page) -> str:
    facts = (piece("fact", name=escape(name), text=text) for name, text in page.items.items())
    contents = (
        piece("heading", level=section.level, slug=section.slug, title=escape(section.title))
        for section in page.sections
        if section.level in (2, 3)
    )
    return piece(
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
            links += piece(
                "neighbour", side=side, rel=which, page=other.page, said=said, label=label
            )
    return rel, piece("neighbours", links=links)


def _index_page(site: Site, pages: Sequence[Page]) -> None:
    entries = ""
    for lesson, page in zip(site.lessons, pages, strict=True):
        entries += piece(
            "entry",
            number=lesson.number,
            page=lesson.page,
            title=page.title,
            able=page.items.get("You will be able to", "…"),
            need=page.items.get("You need", "…"),
            minutes="" if lesson.minutes is None else f"{lesson.minutes} min",
            dots="" if lesson.difficulty is None else dots(lesson.difficulty),
            exercises=_exercises(lesson),
        )
    total = sum(lesson.minutes or 0 for lesson in site.lessons)
    time = f"{total / 60:.0f} hours" if total >= 90 else f"{total} minutes"
    glossary = piece("to_glossary", page=site.glossary.page) if site.glossary else ""
    main = piece("index", lessons=len(site.lessons), time=time, glossary=glossary, entries=entries)
    _write_page(site, "index.html", "", "index", main)


def _exercises(lesson: Lesson) -> str:
    """How many exercises are written in the flow, and how long they take."""
    found = lesson.exercises
    if not found:
        return ""
    minutes = sum(minutes for minutes, _ in found)
    return piece("exercises", number=counted(len(found), "exercise"), minutes=minutes)


def _source_pages(site: Site) -> None:
    for place, linking in site.sources.items():
        source = read_text(_house(site, place), "file", _LARGEST_FILE)
        lines = "".join(highlighted(source, language_of(place), "L"))
        name = f"files/{place}.html"
        root = "../" * name.count("/")
        back = ", ".join(f'<a href="{root}{one.page}">{escape(one.label)}</a>' for one in linking)
        main = piece("file", place=escape(place), back=back, lines=lines)
        _write_page(site, name, f"{place} · ", "file", main)


def _search_data(site: Site, pages: Sequence[tuple[Lesson, Page]]) -> None:
    """A script and not JSON: a page that is opened as a file may not fetch."""
    sections = [
        {
            "page": lesson.page,
            "lesson": lesson.label,
            "slug": section.slug,
            "title": section.title,
            "text": "\n".join(section.text),
            "code": "\n".join(section.code),
        }
        for lesson, page in pages
        for section in page.sections
        if section.slug or section.text or section.code
    ]
    data = json.dumps(sections, ensure_ascii=False, separators=(",", ":"))
    site.write("search.js", f"window.lessonSections = {data};\n")
