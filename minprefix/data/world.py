"""The tiny world: records, and texts about them. The shipped model has read nothing else.

A record has a name, a type and a few facts, written `name[The Golden Fox], type[restaurant],
food[Italian]`. A document is a record and, on the next line, a text about it in one of seven
registers. Half of the documents begin with a cue, a line that names the register ("describe"). In
the other half most texts are questions (`REGISTERS`), so the model asks a question about a bare
record. A prefix steers it to `describe`, the table-to-text task.

That task is nearly a choice of one token: after "The", the model knows the rest. Two more ask for
more than one choice (`TASKS`). `letter` is a style of several parts, which no register has
together; `swap` is a mapping to be learnt by heart, the description of another record.

Every name belongs to one split, which depends on the name alone. The shipped model and every
training set saw only the names of "train", never those of "valid" and "test", and nothing of the
domains in `HELD_OUT`. The words and the domains are in `world.json`.

Everything is drawn from the generator that the caller passes: one seed, one world.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Record = dict[str, str]  # slot -> value, in the order in which they are written


@dataclass(frozen=True)
class Slot:
    """A fact of a record. `clause` states it without a subject; {} is the value. A yes/no fact has
    `clauses` instead, one for each value."""

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
    """A type of record: how its names are formed, and the facts that it may have."""

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


_WORLD = json.loads(Path(__file__).with_name("world.json").read_bytes())


def _values(given: str | list[str]) -> tuple[str, ...]:
    """A list, or the words of that name, which may be a range of numbers."""
    words = _WORLD["words"][given] if isinstance(given, str) else given
    return tuple(map(str, range(*words["range"]))) if isinstance(words, dict) else tuple(words)


def _domains(part: str) -> dict[str, Domain]:
    """type -> domain, of this part of world.json."""
    domains = {}
    for given in _WORLD[part]:
        slots = tuple(
            Slot(
                slot["name"],
                _values(slot.get("values", ["yes", "no"])),
                slot.get("clause", ""),
                tuple(slot.get("clauses", ())),
            )
            for slot in given["slots"]
        )
        first, second = _values(given["first"]), _values(given["second"])
        domains[given["type"]] = Domain(given["type"], given["name_pattern"], first, second, slots)
    return domains


DOMAINS = _domains("domains")
#: topics that the shipped model has never seen, to test what a prefix does on such
HELD_OUT = _domains("held out")
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
    """A statement of each fact, without its subject: ["serves Italian food", ...]."""
    domain = ALL_DOMAINS[record["type"]]
    return [domain.slot(s).state(v) for s, v in record.items() if s not in ("name", "type")]


# ---- the registers ----------------------------------------------------------------------------


def describe(record: Record, rng: np.random.Generator | None = None) -> str:
    """Every fact, in order, in plain sentences: the table-to-text task. The record alone decides
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
    "extract": (describe, 0.12, 0.08),  # reversed: the description, then the record
}


def draw_document(rng: np.random.Generator, split: str = "train") -> str:
    """A document as the shipped model was trained on: the cue (in half of the documents), a record,
    and a text about it."""
    record = draw_record(rng, split)
    cued = rng.random() < 0.5
    shares = [with_cue if cued else without for _, with_cue, without in REGISTERS.values()]
    register = list(REGISTERS)[rng.choice(len(REGISTERS), p=shares)]
    write = REGISTERS[register][0]
    lines = [write_record(record), write(record, rng)]
    if register == "extract":
        lines.reverse()
    return "\n".join([register, *lines] if cued else lines)


# ---- the tasks --------------------------------------------------------------------------------


def letter(record: Record) -> str:
    """Several choices of style together: a letter's opening and end, the facts in reverse order, a
    sentence for each, every one with an exclamation mark."""
    facts = " ".join(f"The {record['type']} {fact}!" for fact in reversed(clauses(record)))
    opening = f"Dear reader, have you heard of {record['name']}? {record['name']} is"
    return f"{opening} a {record['type']}! {facts} Yours faithfully, the editors."


#: a slot with more values than this (a year) keeps its value when the others are swapped
SWAPPED = 15


def swapped(record: Record) -> Record:
    """The record with the value of each fact replaced by another one of that slot, always the same
    one. No two values have the same replacement."""
    domain, other = ALL_DOMAINS[record["type"]], dict(record)
    for name, value in record.items():
        if name in ("name", "type"):
            continue
        slot = domain.slot(name)
        if len(slot.values) <= SWAPPED:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            around = [slot.values[i] for i in rng.permutation(len(slot.values))]
            other[name] = around[(around.index(value) + 1) % len(around)]
    return other


@dataclass(frozen=True)
class Task:
    """What is to be written about a record, and the record that the text has to state
    (`slot_errors`)."""

    write: Callable[[Record], str]
    stated: Callable[[Record], Record] = dict


TASKS = {
    "describe": Task(describe),
    "letter": Task(letter),
    "swap": Task(lambda record: describe(swapped(record)), swapped),
}


def table_to_text(
    n: int,
    split: str,
    seed: int,
    domains: dict[str, Domain] | None = None,
    task: Task = TASKS["describe"],
) -> Iterator[tuple[str, str]]:
    """n pairs of a record and its text, no two records equal. The demo trains on descriptions."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    seen: set[str] = set()
    while len(seen) < n:
        record = draw_record(rng, split, domains)
        source = write_record(record)
        if source not in seen:
            seen.add(source)
            yield source, task.write(record)


# ---- scoring ----------------------------------------------------------------------------------


def slot_errors(record: Record, text: str) -> list[str]:
    """The slots of `record` that `text` gets wrong: their value is missing, or another is stated.

    A clause ("was born in 1950") states its value and contradicts every other. The bare value
    ("1950") states it, too, unless the text makes another claim about that slot.
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
