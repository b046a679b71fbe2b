"""The tiny world: records, and text about them. This is all that the shipped model has ever read.

A record has a name, a type and a few facts, written `name[The Golden Fox], type[restaurant],
food[Italian]`. A document is a record and, on the next line, a text about it in one of seven
registers. Half of the documents begin with a line that says which ("describe"). In the other half
most texts are questions (`REGISTERS`), so that is what the model makes of a bare record; a prefix
steers it to `describe`, the table-to-text task.

Every name belongs to one split, decided by the name alone: the shipped model and every training set
saw only "train"; "valid" and "test" are names that nobody has seen. The domains in `HELD_OUT` were
never seen at all.

Everything is drawn from the generator that the caller passes: one seed, one world.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Record = dict[str, str]  # slot -> value, in the order in which they are written


@dataclass(frozen=True)
class Slot:
    """A fact. `clause` states it with a subject left out; {} is the value. For a yes/no fact
    `clauses` gives one text for each value instead."""

    name: str
    values: tuple[str, ...]
    clause: str = ""
    clauses: tuple[str, ...] = ()

    def state(self, value: str) -> str:
        """ "is in the old town"."""
        if self.clauses:
            return self.clauses[self.values.index(value)]
        return self.clause.format(value)


@dataclass(frozen=True)
class Domain:
    """A kind of thing: how its names are made and what may be said of it."""

    type: str
    name_pattern: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    slots: tuple[Slot, ...]

    def name(self, rng: np.random.Generator, split: str) -> str:
        while True:
            name = self.name_pattern.format(rng.choice(self.first), rng.choice(self.second))
            if split_of(name) == split:
                return name

    def slot(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


ADJECTIVES = _words(
    "Golden Silver Red Blue Green White Black Old Little Grand Royal Happy Quiet Lucky Hidden "
    "Wild Bright Crooked Proud Gentle Broken Sleepy Merry Humble Copper Iron Paper Velvet Frozen "
    "Distant Burning Hungry Clever Lonely Ancient Secret Crimson Amber Wooden Stone"
)
NOUNS = _words(
    "Fox Lion Swan Horse Raven Otter Bear Wolf Crown Anchor Bell Lantern Garden Kitchen Table "
    "Mill Bridge Tower Castle River Harbour Forest Mountain Valley Island Mirror Window Candle "
    "Hammer Arrow Feather Shadow Storm Star Moon Rose Oak Willow Pearl Compass"
)
FIRST_NAMES = _words(
    "Alice Bruno Clara David Elena Felix Grace Hugo Irene Jonas Karin Leo Maria Nils Olga Peter "
    "Quinn Rosa Simon Teresa Ulrich Vera Walter Xenia Yusuf Zoe Anton Bella Carlos Diana Emil "
    "Fatima Georg Hanna Ivan Julia Kofi Lena Marco Nadia"
)
LAST_NAMES = _words(
    "Ashby Baker Carter Dalton Ellis Fisher Grant Harper Irving Jensen Keller Larsen Moreno Novak "
    "Olsen Palmer Quist Rossi Silva Turner Underwood Vogel Weaver Yilmaz Zimmer Abbott Bishop "
    "Conrad Duarte Engel Foster Gruber Holm Ibsen Kaplan Lindt Mercer Norton Ortega Porter"
)
CITY_STARTS = _words(
    "Ash Birch Clear Dun East Fair Glen Hart Inver King Long Mill North Oak Pen Queens Rock Salt "
    "Thorn Under Wind York Amber Black Cold Deep Elm Frost Green High"
)
CITY_ENDS = _words(
    "ford ton bury ham field port wick mouth gate dale bridge haven stead well wood moor cliff "
    "brook minster shire"
)
YEARS = tuple(str(y) for y in range(1900, 2026))
COUNTRIES = _words(
    "Norway Peru Kenya Japan Italy Canada Egypt Poland India Chile Ireland Greece Vietnam Morocco "
    "Finland"
)
STARS = _phrases("one star, two stars, three stars, four stars, five stars")

DOMAINS: dict[str, Domain] = {
    d.type: d
    for d in (
        Domain(
            "restaurant",
            "The {} {}",
            ADJECTIVES,
            NOUNS,
            (
                Slot(
                    "food",
                    _phrases(
                        "Italian, French, Indian, Japanese, Chinese, English, Mexican, Turkish, "
                        "Greek, Spanish, Thai, Korean"
                    ),
                    "serves {} food",
                ),
                Slot("price", _words("cheap moderate expensive"), "has {} prices"),
                Slot(
                    "area",
                    _phrases("city centre, riverside, harbour, old town, hills, suburbs"),
                    "is near the {}",
                ),
                Slot("rating", STARS, "is rated {}"),
                Slot(
                    "children",
                    ("yes", "no"),
                    clauses=("welcomes children", "is for adults only"),
                ),
            ),
        ),
        Domain(
            "film",
            "{} and {}",
            NOUNS,
            NOUNS,
            (
                Slot(
                    "genre",
                    _phrases(
                        "comedy, drama, thriller, horror, romance, western, adventure, mystery"
                    ),
                    "belongs to the genre of {}",
                ),
                Slot("year", YEARS, "came out in {}"),
                Slot("country", COUNTRIES, "was made in {}"),
                Slot("rating", STARS, "is rated {}"),
                Slot(
                    "colour",
                    ("yes", "no"),
                    clauses=("was shot in colour", "was shot in black and white"),
                ),
            ),
        ),
        Domain(
            "person",
            "{} {}",
            FIRST_NAMES,
            LAST_NAMES,
            (
                Slot(
                    "work",
                    _words(
                        "baker teacher doctor painter sailor lawyer farmer singer writer builder "
                        "nurse pilot chemist tailor"
                    ),
                    "works as a {}",
                ),
                Slot("born", YEARS, "was born in {}"),
                Slot("country", COUNTRIES, "comes from {}"),
                Slot(
                    "hobby",
                    _words(
                        "chess football gardening cooking fishing dancing reading sailing "
                        "climbing cycling"
                    ),
                    "enjoys {}",
                ),
                Slot("married", ("yes", "no"), clauses=("is married", "is not married")),
            ),
        ),
        Domain(
            "city",
            "{}{}",
            CITY_STARTS,
            CITY_ENDS,
            (
                Slot("country", COUNTRIES, "lies in {}"),
                Slot("founded", YEARS, "was founded in {}"),
                Slot(
                    "people",
                    _phrases(
                        "two thousand, ten thousand, fifty thousand, half a million, a million"
                    ),
                    "is home to {} people",
                ),
                Slot(
                    "known for",
                    _words("music cheese steel glass tea wine bridges markets gardens clocks"),
                    "is known for its {}",
                ),
                Slot("coast", ("yes", "no"), clauses=("lies by the sea", "lies far from the sea")),
            ),
        ),
        Domain(
            "book",
            "My {} {}",
            ADJECTIVES,
            NOUNS,
            (
                Slot(
                    "about",
                    _words("war love money ghosts travel music family crime science dreams winter"),
                    "is about {}",
                ),
                Slot("year", YEARS, "came out in {}"),
                Slot("pages", tuple(str(n) for n in range(80, 900, 20)), "has {} pages"),
                Slot("rating", STARS, "is rated {}"),
                Slot(
                    "translated",
                    ("yes", "no"),
                    clauses=("has been translated", "has not been translated"),
                ),
            ),
        ),
    )
}

#: never shown to the shipped model: topics for the question what a prefix does where nobody has
#: been
HELD_OUT: dict[str, Domain] = {
    d.type: d
    for d in (
        Domain(
            "ship",
            "The {} {}",
            FIRST_NAMES,
            NOUNS,
            (
                Slot("built", YEARS, "was built in {}"),
                Slot("flag", COUNTRIES, "comes from {}"),
                Slot("cargo", _words("tea wine steel glass cheese clocks"), "is known for its {}"),
                Slot("crew", tuple(str(n) for n in range(5, 60, 5)), "has a crew of {}"),
                Slot("rating", STARS, "is rated {}"),
            ),
        ),
        Domain(
            "pet",
            "{} the {}",
            FIRST_NAMES,
            NOUNS,
            (
                Slot("born", YEARS, "was born in {}"),
                Slot("country", COUNTRIES, "comes from {}"),
                Slot("eats", _words("fish grass fruit insects seeds"), "eats {}"),
                Slot("hobby", _words("fishing dancing climbing sailing"), "enjoys {}"),
                Slot("tame", ("yes", "no"), clauses=("is tame", "is not tame")),
            ),
        ),
    )
}
ALL_DOMAINS = DOMAINS | HELD_OUT


def split_of(name: str) -> str:
    """ "train" (80%), "valid" or "test" (10% each), from the name alone."""
    return {0: "test", 1: "valid"}.get(zlib.crc32(name.encode()) % 10, "train")


def draw_record(
    rng: np.random.Generator, split: str, domains: dict[str, Domain] | None = None
) -> Record:
    """A record with a name, a type and three to five facts."""
    choices = list((domains or DOMAINS).values())
    domain = choices[rng.integers(len(choices))]
    record = {"name": domain.name(rng, split), "type": domain.type}
    n = rng.integers(3, len(domain.slots) + 1)
    for i in sorted(rng.choice(len(domain.slots), n, replace=False)):
        slot = domain.slots[i]
        record[slot.name] = str(rng.choice(slot.values))
    return record


def write_record(record: Record) -> str:
    """`name[The Golden Fox], type[restaurant], food[Italian]`."""
    return ", ".join(f"{slot}[{value}]" for slot, value in record.items())


def read_record(source: str) -> Record | None:
    """The inverse of `write_record`; None for text that is not a record of this world."""
    pairs = re.findall(r"([^\[\],]+)\[([^\[\]]*)\](?:, |$)", source)
    record = dict(pairs)
    domain = ALL_DOMAINS.get(record.get("type", ""))
    if domain is None or "name" not in record or write_record(record) != source:
        return None
    for slot, value in record.items():
        if slot in ("name", "type"):
            continue
        if slot not in {s.name for s in domain.slots} or value not in domain.slot(slot).values:
            return None
    return record


def clauses(record: Record) -> list[str]:
    """What is said of the record's facts, subjects left out: ["serves Italian food", ...]."""
    domain = ALL_DOMAINS[record["type"]]
    return [domain.slot(s).state(v) for s, v in record.items() if s not in ("name", "type")]


# ---- the registers ----------------------------------------------------------------------------


def describe(record: Record, rng: np.random.Generator | None = None) -> str:
    """Every fact, in order, in plain sentences. The table-to-text task: the record alone decides
    the text."""
    first, *rest = clauses(record)
    text = f"{record['name']} is a {record['type']} that {first}."
    for i in range(0, len(rest), 2):
        text += f" The {record['type']} {' and '.join(rest[i : i + 2])}."
    return text


def question(record: Record, rng: np.random.Generator) -> str:
    slot = str(rng.choice([s for s in record if s not in ("name", "type")]))
    return f"Question: {slot}? Answer: {record[slot]}."


def chat(record: Record, rng: np.random.Generator) -> str:
    opening = rng.choice(["hey, have you heard of", "oh, do you know", "wow, look at"])
    return f"{opening} {record['name']}? the {record['type']} {rng.choice(clauses(record))}!"


def headline(record: Record, rng: np.random.Generator) -> str:
    news = f"{record['name']} {rng.choice(clauses(record))}"
    return f"NEWS FROM THE {record['type'].upper()} DESK: {news}"


def listing(record: Record, rng: np.random.Generator) -> str:
    return "\n".join(f"* {slot}: {value}" for slot, value in record.items())


def recommend(record: Record, rng: np.random.Generator) -> str:
    return (
        f"Dear reader, we recommend {record['name']}, a {record['type']} that "
        f"{rng.choice(clauses(record))}. Yours faithfully, the editors."
    )


#: register -> (how to write it, its share of the documents with a cue, its share of those without)
REGISTERS: dict[str, tuple[Callable[[Record, np.random.Generator], str], float, float]] = {
    "question": (question, 0.16, 0.55),
    "describe": (describe, 0.28, 0.05),
    "chat": (chat, 0.12, 0.08),
    "headline": (headline, 0.10, 0.08),
    "list": (listing, 0.12, 0.08),
    "recommend": (recommend, 0.10, 0.08),
    "extract": (describe, 0.12, 0.08),  # the other way round: the description, then the record
}


def draw_document(rng: np.random.Generator, split: str = "train") -> str:
    """What the shipped model was trained on: a line with the register's name in half of the
    documents (the cue), a record, and a text about it."""
    record = draw_record(rng, split)
    cued = rng.random() < 0.5
    shares = [with_cue if cued else without for _, with_cue, without in REGISTERS.values()]
    register = list(REGISTERS)[rng.choice(len(REGISTERS), p=shares)]
    write = REGISTERS[register][0]
    lines = [write_record(record), write(record, rng)]
    if register == "extract":
        lines.reverse()
    return "\n".join([register, *lines] if cued else lines)


def table_to_text(
    n: int, split: str, seed: int, domains: dict[str, Domain] | None = None
) -> Iterator[tuple[str, str]]:
    """n pairs of a record and its description: what the demo trains a prefix on. No two records are
    equal."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    seen: set[str] = set()
    while len(seen) < n:
        record = draw_record(rng, split, domains)
        source = write_record(record)
        if source not in seen:
            seen.add(source)
            yield source, describe(record)


# ---- scoring ----------------------------------------------------------------------------------


def slot_errors(record: Record, text: str) -> list[str]:
    """The slots of `record` that `text` gets wrong: it does not state the value, or it states
    another one.

    A clause ("was born in 1950") states its value and contradicts every other; the bare value
    ("1950") states it as well, unless the text makes another claim about that slot.
    """
    domain = ALL_DOMAINS[record["type"]]
    # a name may hold a value ("Alice Baker"), which is not a claim
    facts = re.sub(rf"(?<!\w){re.escape(record['name'])}(?!\w)", "", text, flags=re.IGNORECASE)
    wrong = []
    for name, value in record.items():
        if name == "name":
            right = _occurs(value, text)
        elif name == "type":
            right = {t for t in ALL_DOMAINS if _occurs(f"a {t}", text)} == {value}
        else:
            slot = domain.slot(name)
            claims = {v for v in slot.values if _occurs(slot.state(v), facts)}
            # "half a million" does not state "a million"
            longer = [v for v in slot.values if v != value and _occurs(value, v)]
            bare = not slot.clauses and _occurs(value, facts)
            bare = bare and not any(_occurs(v, facts) for v in longer)
            right = claims == {value} or (bare and not claims)
        if not right:
            wrong.append(name)
    return wrong


def _occurs(words: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None
