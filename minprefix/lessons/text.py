"""A lesson's Markdown as HTML, and its code with colours. Everything is escaped."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from minprefix.errors import quoted
from minprefix.lessons.formula import FormulaError, mathml

if TYPE_CHECKING:
    from markdown_it.token import Token

#: the HTML that a lesson may use
_TAG = re.compile(r"</?(?:details|summary|br|sub|sup|kbd)\s*/?>", re.IGNORECASE)
#: a formula with the punctuation around it, which no line break may part from it
_PUNCTUATED = re.compile(
    r"(\(<math (?:(?!</math>).)*</math>[.,:;!?)]*|<math (?:(?!</math>).)*</math>[.,:;!?)]+)",
    re.DOTALL,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass
class Section:
    """A heading and the text and code below it, for the search."""

    slug: str
    title: str
    level: int
    text: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


@dataclass
class Page:
    """The state that the cells of one page share.

    `link` turns a link's target into the site's, None for a dead one; `warn` is told what is wrong
    in the present cell.
    """

    link: Callable[[str], str | None]
    warn: Callable[[str], None]
    sections: list[Section] = field(default_factory=lambda: [Section("", "", 1)])
    title: str = ""  # of the lesson's head, as HTML
    items: dict[str, str] = field(default_factory=dict)  # too

    def __post_init__(self) -> None:
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin

        self._markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        self._markdown.use(dollarmath_plugin, allow_space=False, double_inline=True)
        renderer: Any = self._markdown.renderer
        rules = renderer.rules
        rules["math_inline"] = lambda t, i, o, e: self._math(t[i].content, False)
        rules["math_inline_double"] = rules["math_block"] = lambda t, i, o, e: self._math(
            t[i].content, True
        )
        rules["fence"] = lambda t, i, o, e: self._fence(t[i].content, t[i].info.strip())
        rules["code_block"] = lambda t, i, o, e: self._fence(t[i].content, "")
        rules["html_block"] = rules["html_inline"] = lambda t, i, o, e: self._html(t[i].content)
        rules["image"] = lambda t, i, o, e: self._picture(t[i])
        rules["table_open"] = lambda t, i, o, e: '<div class="table"><table>\n'
        rules["table_close"] = lambda t, i, o, e: "</table></div>\n"

    def html(self, source: str) -> list[str]:
        """A cell in pieces; each heading begins one."""
        tokens = self._markdown.parse(source)
        self._walk(tokens)
        pieces, begun, inside = [], 0, 0
        for i, token in enumerate(tokens):
            if token.type == "html_block":
                inside += len(re.findall("<details>", token.content))
                inside -= len(re.findall("</details>", token.content))
            if token.type == "heading_open" and token.level == 0 and not inside and i > begun:
                pieces.append(self._set(tokens[begun:i]))
                begun = i
        return [*pieces, self._set(tokens[begun:])] if tokens else []

    def _set(self, tokens: "Sequence[Token]") -> str:
        shown = self._markdown.renderer.render(tokens, self._markdown.options, {})
        shown = _PUNCTUATED.sub(r'<span class="together">\1</span>', shown)
        for tag in ("details", "summary"):
            opened, closed = (len(re.findall(f"<{mark}{tag}>", shown)) for mark in ("", "/"))
            if opened != closed:
                self.warn(f"<{tag}> is opened {opened} times and closed {closed} times")
                shown += f"</{tag}>" * max(0, opened - closed)
        return shown

    def predicts(self, source: str) -> bool:
        """Whether the cell ends by asking for a prediction."""
        last = len(source.rstrip().split("\n"))
        for token in self._markdown.parse(source):
            if token.type == "inline" and "\n**Predict" in token.content:
                self.warn("**Predict.** is no paragraph of its own: leave an empty line before")
            if token.type != "inline" or not token.content.startswith("**Predict"):
                continue
            if not token.content.startswith("**Predict.**"):
                self.warn(f"{quoted(token.content)} does not begin with `**Predict.**`")
            elif token.level != 1 or token.map is None or token.map[1] != last:
                self.warn("**Predict.** is not the last paragraph of its cell")
            else:
                return True
        return False

    def inline(self, source: str) -> str:
        """Markdown inside a line, without a paragraph around it."""
        tokens = self._markdown.parseInline(source)
        self._walk(tokens)
        return self._markdown.renderer.render(tokens, self._markdown.options, {})

    # ---- reading the tokens -----------------------------------------------------------------

    def _walk(self, tokens: "Sequence[Token]") -> None:
        for i, token in enumerate(tokens):
            if token.type == "heading_open":
                self._heading(token, tokens[i + 1])
            elif token.type == "inline":
                self._inline(token)
                for begins in ("Predict", "Recap"):
                    if token.content.startswith(f"**{begins}.**") and tokens[i - 1].level == 0:
                        tokens[i - 1].attrSet("class", begins.lower())
            elif token.type in ("fence", "code_block"):
                self.sections[-1].code.append(token.content)
            elif token.type == "math_block":
                self.sections[-1].text.append(_spoken(token.content))

    def _heading(self, token: "Token", inline: "Token") -> None:
        title = _words(inline)
        alone = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") or "section"
        taken = {section.slug for section in self.sections}
        numbered = (f"{alone}-{n}" for n in count(1))
        slug = next(slug for slug in chain([alone], numbered) if slug not in taken)
        token.attrSet("id", slug)
        level = int(token.tag[1])
        if level == 1:
            self.warn(f"the heading {quoted(title)} is a second title: write `## `")
        self.sections.append(Section(slug, title, level))

    def _inline(self, token: "Token") -> None:
        dollars = -token.content.count(r"\$")
        for child in token.children or []:
            if child.type == "text":
                dollars += child.content.count("$")
            elif child.type == "link_open":
                href = str(child.attrGet("href"))
                target = self.link(href)
                if target is None:
                    child.attrs.pop("href")
                    child.attrSet("class", "dead")
                else:
                    child.attrSet("href", target)
        if dollars > 0:
            self.warn(
                f"a dollar sign begins no formula in {quoted(token.content)}: $x$ has no "
                r"space inside its dollars, and money is \$"
            )
        self.sections[-1].text.append(_words(token))

    # ---- writing HTML -----------------------------------------------------------------------

    def _math(self, tex: str, block: bool) -> str:
        try:
            shown = mathml(tex.strip(), block)
        except FormulaError as error:
            self.warn(f"the formula {quoted(tex.strip())} cannot be set: {error}")
            shown = f'<code class="bad">{escape(tex)}</code>'
        return f'<span class="display">{shown}</span>' if block else shown

    def _fence(self, source: str, info: str) -> str:
        language = info.split()[0] if info else "text"
        if not known(language):
            self.warn(f"the language {quoted(language)} of a fence is not known")
            language = "text"
        return f'<div class="code fence"><pre>{"".join(highlighted(source, language))}</pre></div>'

    def _html(self, source: str) -> str:
        """The tags that a lesson may use, Markdown between them; other markup shows as text."""
        source = _COMMENT.sub("", source)
        parts, end = [], 0
        for tag in [*_TAG.finditer(source), None]:
            between = source[end : tag.start() if tag else len(source)]
            if "<" in between:
                self.warn(f"{quoted(between.strip())} is no HTML that a lesson may use")
                parts.append(escape(between))
            else:
                parts.append(self.inline(between) if between.strip() else between)
            if tag:
                parts.append(tag[0].lower())
                end = tag.end()
        return "".join(parts)

    def _picture(self, token: "Token") -> str:
        self.warn(f"the picture {quoted(token.attrGet('src'))} is a file: draw it in a cell")
        return escape(token.content)


def _words(token: "Token") -> str:
    """An inline token without its markup."""
    words = []
    for child in token.children or []:
        if child.type in ("softbreak", "hardbreak"):
            words.append(" ")
        elif child.type.startswith("math"):
            words.append(_spoken(child.content))
        elif child.type != "html_inline":
            words.append(child.content)
    return "".join(words)


def _spoken(tex: str) -> str:
    """A formula as the search knows it: its letters and the names of its commands."""
    tex = re.sub(
        r"\\(?:mathrm|mathbf|mathbb|boldsymbol|text|operatorname|left|right|quad|qquad)", "", tex
    )
    tex = re.sub(r"\\(?:begin|end)\{\w+\*?\}|\\[^a-zA-Z]|[{}&]", " ", tex)
    return " ".join(re.sub(r"\\([a-zA-Z]+)", r" \1 ", tex).split())


# ---- code -------------------------------------------------------------------------------------


def known(language: str) -> bool:
    from pygments.lexers import find_lexer_class_by_name
    from pygments.util import ClassNotFound

    try:
        return bool(find_lexer_class_by_name(language))
    except ClassNotFound:
        return False


def language_of(name: str) -> str:
    """The language of a file, by its name."""
    from pygments.lexers import find_lexer_class_for_filename

    lexer = find_lexer_class_for_filename(name)
    return lexer.aliases[0] if lexer else "text"


def highlighted(source: str, language: str, lines: str | None = None) -> list[str]:
    """HTML line by line, each with its line break. With `lines`, each line has an anchor of that
    name and its number."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=True)
    # no span crosses a line's end
    shown = highlight(source, lexer, HtmlFormatter(nowrap=True)).splitlines(keepends=True)
    if lines is None:
        return shown
    return [
        f'<span class="line" id="{lines}{n}"><a class="ln" href="#{lines}{n}" tabindex="-1" '
        f'aria-hidden="true">{n}</a>{line.rstrip()}</span>\n'
        for n, line in enumerate(shown, start=1)
    ]
