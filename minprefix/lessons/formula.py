"""A formula in TeX as MathML, which a browser sets by itself.

latex2mathml is lenient: it lets through what it does not know, and does not escape. So its answer
is parsed, and any markup that is not MathML is refused.
"""

import re
import unicodedata
from xml.etree import ElementTree

_MATHML = "http://www.w3.org/1998/Math/MathML"
_TAG = re.compile(
    "math|m(row|i|n|o|text|space|frac|sqrt|root|style|sub|sup|subsup|under|over|underover|table|tr"
    "|td|padded|phantom|enclose)"
)
#: TeX that latex2mathml does not read -> the same in TeX that it reads
_REWRITTEN = [
    (r"\{aligned\}", "{split}"),
    (r"\\operatorname\*?\{arg *\\, *(max|min)\}", r"\\arg\1"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\arg(?![a-z])", r"\\operatorname{arg}"),
]
#: commands that latex2mathml answers and a formula on a page may not use
_REFUSED = re.compile(r"\\(tag|label|ref|href|color|hline|newcommand|def)(?![a-zA-Z])")
#: `mathvariant` -> its letters in Unicode: browsers know only "normal"
_ALPHABETS = {
    name: name.upper() for name in ("bold", "double-struck", "monospace", "sans-serif")
} | {"bold-italic": "BOLD ITALIC"}
#: operators with their limits below and above in a display
_LARGE = {"∑", "∏", "⋃", "⋂", "max", "min", "lim", "sup", "inf", "arg\u2009max", "arg\u2009min"}
_FUNCTIONS = {"ln", "log", "exp", "sin", "cos", "tanh", "max", "min", "det"}
_UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
#: names that latex2mathml gives as operators, with an operator's spaces
_NAMES = {"∞", "∂", "∅"}
#: tag -> how many parts it has
_PARTS = dict.fromkeys(("mfrac", "mroot", "msub", "msup", "munder", "mover"), 2)
_PARTS |= {"msubsup": 3, "munderover": 3}
_RELATIONS = set("=≈≠≤≥<>≪≫∈→≡∝")
#: a name: letters side by side in the source, outside commands and arguments that set text
_NAME = re.compile(
    r"\\(?:text\w*|math\w+|operatorname)\*? *\{[^}]*\}|\\[A-Za-z]+|([A-Za-z](?:(?:\\_)?[A-Za-z])+)"
)
#: signs; a longer formula gets a scroll bar of its own on a phone
_LONG = 22


class FormulaError(ValueError):
    """The part of a formula that cannot be set."""


def mathml(tex: str, block: bool = False) -> str:
    """The formula in several <math>, so that a narrow page can break the line: a block breaks at
    its \\quad, any other formula before =, < and the like. Raises FormulaError."""
    root = _parsed(tex, "block" if block else "inline")
    for element in root.iter():
        _mend(element, block)
    found = {name.replace("\\", "") for name in _NAME.findall(_rewritten(tex))} - {""}
    names = sorted(found, key=len, reverse=True)
    for element in root.iter():
        _join_names(element, names)
        _set_apart(element)
    between = "" if block else "<wbr>"
    return between.join(_written(formula, block) for formula in _broken(root, block))


def _rewritten(tex: str) -> str:
    for pattern, instead in _REWRITTEN:
        tex = re.sub(pattern, instead, tex)
    return tex


def _parsed(tex: str, display: str) -> ElementTree.Element:
    """latex2mathml's answer, its tags without their namespace."""
    from latex2mathml.converter import convert

    refused = _REFUSED.search(tex)
    if refused:
        raise FormulaError(f"{refused[0]} is not for formulas on a page")
    braces = re.sub(r"\\[\\{}]", "", tex)
    if braces.count("{") != braces.count("}"):
        raise FormulaError("its braces do not pair")
    try:
        written = convert(_rewritten(tex), display=display)
    except Exception as error:  # each kind of mistake has its own class, most without a text
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error"))
        raise FormulaError(str(error) or name.lower()) from error
    try:
        root = ElementTree.fromstring(written)
    except ElementTree.ParseError:
        raise FormulaError("it has a bare & or <") from None
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_MATHML}}}")
    return root


def _written(formula: ElementTree.Element, block: bool) -> str:
    text = ElementTree.tostring(formula, encoding="unicode")
    long = not block and len("".join(formula.itertext())) > _LONG
    return f'<span class="long">{text}</span>' if long else text


def _broken(root: ElementTree.Element, block: bool) -> list[ElementTree.Element]:
    """One <math> for each part of the formula that a line may hold."""
    rows: list[list[ElementTree.Element]] = [[]]
    for element in root[0] if len(root) else ():
        if block and element.tag == "mspace" and element.get("width") in ("1em", "2em"):
            rows.append([])
            continue
        if not block and rows[-1] and element.tag == "mo" and element.text in _RELATIONS:
            element.set("form", "infix")  # keeps its spaces, though it comes first
            rows.append([])
        rows[-1].append(element)
    formulas = []
    for row in filter(None, rows):
        formula = ElementTree.Element("math", {"xmlns": _MATHML} | root.attrib)
        ElementTree.SubElement(formula, "mrow").extend(row)
        formulas.append(formula)
    return formulas


def _mend(element: ElementTree.Element, block: bool) -> None:
    tag = element.tag
    if not _TAG.fullmatch(tag):
        raise FormulaError(f"it holds the markup <{tag}>")
    if len(element) != _PARTS.get(tag, len(element)):
        raise FormulaError("a fraction, a root or a script lacks a part")
    unknown = re.search(r"\\\w*", element.text or "")
    if unknown:
        raise FormulaError(f"{unknown[0]} is not known")
    if tag == "mo" and element.text in _NAMES:
        element.tag = "mi"
    elif tag in ("msup", "msubsup"):
        _prime(element)
    if tag in _UNDER and block and element[0].text in _LARGE:
        element.tag = _UNDER[tag]
    variant = element.get("mathvariant")
    if variant in _ALPHABETS and element.text:
        element.text = "".join(_letter(char, _ALPHABETS[variant]) for char in element.text)
        del element.attrib["mathvariant"]
    _join_upright(element)


def _prime(scripts: ElementTree.Element) -> None:
    """A prime's glyph is raised already: as a superscript it would fly away from its letter."""
    above = scripts[-1]
    primes = above[0] if len(above) else above
    if set(primes.text or "-") - set("′″‴"):
        return
    base = ElementTree.Element("mrow")
    base.append(scripts[0])
    mark = ElementTree.SubElement(base, "mo", {"lspace": "0", "rspace": "0"})
    mark.text = primes.text
    scripts[0] = base
    if len(above) > 1:
        above.remove(primes)
    else:
        scripts.remove(above)
        scripts.tag = "mrow" if len(scripts) == 1 else "msub"


def _letter(char: str, alphabet: str) -> str:
    """The letter or digit in another alphabet; the character itself where Unicode has none."""
    name = re.sub("LATIN |GREEK |LETTER ", "", unicodedata.name(char, ""))
    try:
        return unicodedata.lookup(f"MATHEMATICAL {alphabet} {name}")
    except KeyError:  # such as the well-known double-struck letters, which have other names
        return char


def _join_upright(row: ElementTree.Element) -> None:
    r"""`\mathrm{softmax}` comes as seven letters: a word is one identifier, and so upright."""
    before = None
    for element in list(row):
        upright = element.tag == "mi" and element.get("mathvariant") == "normal"
        if upright and before is not None:
            before.text = (before.text or "") + (element.text or "")
            row.remove(element)
            before.attrib.pop("mathvariant", None)  # of several letters it is the default
        else:
            before = element if upright else None


def _set_apart(row: ElementTree.Element) -> None:
    r"""`\log x` as "log x": a function's name is no factor."""
    for i in reversed(range(len(row) - 1)):
        name, after = row[i], row[i + 1]
        if name.tag == "mi" and name.text in _FUNCTIONS and after.tag not in ("mo", "mspace"):
            row.insert(i + 1, ElementTree.Element("mspace", {"width": "0.167em"}))


def _join_names(row: ElementTree.Element, names: list[str]) -> None:
    """`pattern` in a formula is one identifier, not a product of seven; a script belongs to it
    whole, though TeX hangs it on the last letter."""
    parts = list(row)
    at = 0
    while at < len(parts):
        letters = [_letter_of(part) for part in parts[at:]]
        text = "".join(letters[: letters.index("") if "" in letters else None])
        # behind a letter with a script a new name begins
        scripted = [i for i in range(len(text)) if len(parts[at + i])]
        text = text[: scripted[0] + 1] if scripted else text
        name = next((name for name in names if text.startswith(name)), "")
        if name:
            last = parts[at + len(name) - 1]
            identifier = last[0] if len(last) else last
            identifier.text = name
            identifier.set("class", "name")
            for part in parts[at : at + len(name) - 1]:
                row.remove(part)
        at += len(name) or 1


def _letter_of(part: ElementTree.Element) -> str:
    """The one italic letter (or the _ of a name) of this part, without its scripts; else ""."""
    base = part[0] if part.tag in ("msub", "msup", "msubsup") and len(part) else part
    text = base.text or ""
    plain = base.tag == "mi" and "mathvariant" not in base.attrib
    return text if plain and re.fullmatch("[A-Za-z_]", text) else ""
