"""Ways to damage a file, or what stands in its place: by bytes, by JSON's structure with values
that hypothesis draws, by safetensors' header, by lines, by links."""

import contextlib
import json
import os
import random
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

# ---- values ---------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
#: JSON that somebody would choose: sizes that overflow, names that lead out, nests without end
CHOSEN = [
    *map(str, (0, 1, 2, 3, -1, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**12)),
    "9" * 4300, "9" * 5000, "1e999", "-1e999", "1e-400", "0.1", "1.0", "-0", "NaN", "-Infinity",
    "true", "false", "null", "[]", "{}", '""', '" "', '"a"', '"\\u0000"', '"\\ud800"',
    '"\\udc80"', '"\\u001b[2J"', '"../model.safetensors"', '"/etc/passwd"', '".."', '"."',
    '"a/b"', '"a\\\\b"', '"~"', '"\\u202e"', "[" * 900 + "]" * 900, "[" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500, '"' + "x" * 300 + '"', '"' + "x" * 100_000 + '"',
    '"' + "\\n" * 500 + '"', "[" + "0," * 50_000 + "0]", "[4294967296,4294967296]",
    "[1000000,1000000]", "[-1]", "[0]", "[0,0]", '{"type":"Precompiled","precompiled_charsmap":""}',
    '{"Regex":"(a+)+$"}', '{"type":"Replace","pattern":{"String":""},"content":"x"}',
    '{"type":"FixedLength","length":0}', '{"type":"Sequence","pretokenizers":[]}',
]  # fmt: skip


def draw_values(seed: int, n: int = 400) -> list[str]:
    """`n` values that hypothesis draws, as JSON: the same ones for the same seed."""
    drawn: list[str] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n, database=None, derandomize=False, deadline=None, phases=["generate"],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(VALUES)
    def draw(value: Any) -> None:
        drawn.append(json.dumps(value))

    draw()
    return drawn


# ---- bytes ----------------------------------------------------------------------------------

PIECES = [
    b"\0", b"\xff", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r", b"\r\n", b"-",
    b"1e999", b"NaN", b"\\", b"\\u0000", b"\\ud800", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x80",
    b"../", b"99999999999999999999", b" ", b"#version", b"\x1b[2J", "\u2028".encode(),
    "\U0001f642".encode(),
]  # fmt: skip


def by_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to four of: flip a bit, set, insert, delete, cut, repeat a block, splice with another
    file, swap two blocks, a run of 0x00 or 0xff."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        to = min(to, at + rng.choice((1, 4, 16, 1000)))
        way = rng.randrange(10)
        if way == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif way == 1:
            data = data[:at] + rng.randbytes(1) + data[at + 1 :]
        elif way == 2:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif way == 3:
            data = data[:at] + data[to:]
        elif way == 4:
            data = data[:at]
        elif way == 5:
            data = data[:to] + data[at:to] * rng.choice((1, 2, 50)) + data[to:]
        elif way == 6:
            data = data[:at] + other[min(at, len(other)) :]
        elif way == 7:
            data = data[to : 2 * to - at] + data[at:to] + data[:at] + data[2 * to - at :]
        elif way == 8:
            data = data[:at] + rng.choice((b"\0", b"\xff")) * (to - at) + data[to:]
        else:
            data = data[:at] + rng.choice(PIECES) + data[at + 1 :]
    return data


def instead(rng: random.Random, data: bytes) -> bytes:
    """Something else altogether, and the same text in another encoding."""
    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b"\n",
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: data.decode("latin-1").encode("utf-8"),
        lambda: b"\x80\x04\x95" + data,  # a pickle
        lambda: b"cposix\nsystem\n(S'touch owned'\ntR.",  # and one that runs a command
        lambda: b"PK\x03\x04" + data,
        lambda: b"<!doctype html><html>not found</html>",
        lambda: rng.randbytes(rng.choice((1, 7, 8, 9, 100, 5000))),
        lambda: b"[" * 100_000,
        lambda: b'{"a":' * 20_000,
        lambda: b"9" * 10_000,
        lambda: b'"' + b"x" * 300_000,
        lambda: b"," * 1_000_000,
        lambda: b"source,target\n" + b'"' + b"x" * 200_000,
        lambda: b"source,target\n" + b"," * 1_000_000 + b"\n",
        lambda: b"source,target\n" + b",\n" * 50_000,
        lambda: b"[" + b"[]," * 100_000 + b"[]]",
        lambda: b"{" + b",".join(b'"%d":{}' % i for i in range(50_000)) + b"}",
        lambda: (
            b'{"weight_map":{' + b",".join(b'"%d":"%d"' % (i, i) for i in range(50_000)) + b"}}"
        ),
        lambda: data * 3,
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(b"\n", b""),
        lambda: data.replace(b"\n", b"\n\n"),
    ]
    return rng.choice(ways)()


# ---- JSON -----------------------------------------------------------------------------------

HOLE = '"\\u0000hole\\u0000"'  # what a value is put in place of, in the text


def by_json(rng: random.Random, text: str, values: list[str]) -> str:
    """Replace, rename, remove, double or move a node of it."""
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text
    fills, twice = [], []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = list(_nodes(root))
        if not nodes:
            return rng.choice(values + CHOSEN)
        # a level first: a vocabulary has hundreds of nodes, what stands around it a few
        level = rng.choice(sorted({depth for depth, _, _ in nodes}))
        _, parent, key = rng.choice([n for n in nodes if n[0] == level])
        way = rng.randrange(8)
        if way <= 3:
            parent[key] = "\0hole\0"
            fills.append(rng.choice(CHOSEN if rng.random() < 0.5 else values))
        elif way == 4:
            del parent[key]
        elif way == 5 and isinstance(parent, dict):
            with contextlib.suppress(ValueError, RecursionError):
                name = json.loads(rng.choice([*values, *CHOSEN]))
                parent[name if isinstance(name, str) else str(name)[:30]] = parent.pop(key)
        elif way == 6 and isinstance(parent, dict):
            parent[f"\0twice{len(twice)}\0"] = rng.choice((parent[key], None, 0))
            twice.append(key)
        else:
            _, others, at = rng.choice(nodes)
            with contextlib.suppress(KeyError, IndexError):
                parent[key], others[at] = others[at], parent[key]
                if rng.random() < 0.5:
                    parent[key] = [parent[key]]
    try:
        text = json.dumps(root, ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):  # moved into itself
        return text
    for n, key in enumerate(twice):
        text = text.replace(json.dumps(f"\0twice{n}\0"), json.dumps(key))
    for fill in fills:
        text = text.replace(HOLE, fill, 1)
    return text


def _nodes(value: Any, depth: int = 0) -> Any:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield depth, value, key
        if isinstance(value[key], dict | list) and depth < 100:
            yield from _nodes(value[key], depth + 1)


# ---- safetensors ----------------------------------------------------------------------------

DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "C64", "Z", ""]
SIZES = [0, 1, 2, 4, 8, 10**6, 10**12, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64, -1, -8, 1.0]


def join(header: str | bytes, body: bytes, pad: bool = True) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8 if pad else 0)
    return len(raw).to_bytes(8, "little") + raw + body


def split(data: bytes) -> tuple[str, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end].decode("utf-8"), data[end:]


def by_header(rng: random.Random, data: bytes, values: list[str]) -> bytes:
    text, body = split(data)
    way = rng.randrange(10)
    if way <= 1:
        return join(by_json(rng, text, values), body)
    if way == 2:  # a length that lies
        length = rng.choice(
            (0, 1, len(text) - 1, len(text) + 8, len(data), 10**12, 2**63, 2**64 - 1)
        )
        return length.to_bytes(8, "little") + data[8:]
    if way == 3:  # bytes of the header
        return join(by_bytes(rng, text.encode(), body), body, rng.random() < 0.5)
    if way == 4:  # numbers of the body
        specials = (
            b"\0\0\xc0\x7f",
            b"\0\0\x80\x7f",
            b"\0\0\x80\xff",
            b"\xff\xff\x7f\x7f",
            b"\1\0\0\0",
        )
        at = rng.randrange(len(body) // 4) * 4
        return join(text, body[:at] + rng.choice(specials) + body[at + 4 :])
    header = json.loads(text)
    names = [n for n in header if n != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    if way == 5:
        entry["data_offsets"][rng.randrange(2)] = rng.choice([*SIZES, entry["data_offsets"][0] + 4])
    elif way == 6:
        entry["shape"] = rng.choice(
            [[2**32, 2**32], [10**12], [2**63, 2], [-1], [], [0, 2**62], entry["shape"][::-1],
             [1, *entry["shape"]], [1] * 100 + entry["shape"],
             [rng.choice(SIZES)] * rng.choice((1, 2, 40, 70))]
        )  # fmt: skip
    elif way == 7:
        entry["dtype"] = rng.choice(DTYPES)
        if rng.random() < 0.5:  # of the same size, so that the library has nothing to say
            width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8}.get(
                entry["dtype"], 4
            )
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if size % width == 0:
                entry["shape"] = [size // width]
    elif way == 8:  # one more, of no bytes, at the end
        end = max(header[n]["data_offsets"][1] for n in names)
        more = rng.choice(([0], [0, 10**12], [0, 2**62], [0] * 70, [10**12]))
        new = rng.choice(
            (name.removeprefix("transformer."), "x" * 5000, "", "h.x.y", "\x1b[2J", "h.7.a")
        )
        header[new] = {"dtype": "F32", "shape": more, "data_offsets": [end, end]}
    else:
        header["__metadata__"] = rng.choice(
            [{"format": 1}, {"a": None}, [], "x", {}, {"minprefix": "{"}, {"a": "b" * 10**5}]
        )
    text = json.dumps(header)
    if rng.random() < 0.1:  # the same name again
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(entry)}}}"
    return join(text, body, rng.random() < 0.8)


def by_metadata(rng: random.Random, data: bytes, values: list[str]) -> bytes:
    """The JSON that a state of a run keeps in its metadata."""
    text, body = split(data)
    header = json.loads(text)
    held = header.get("__metadata__", {})
    if not held:
        return by_header(rng, data, values)
    key = rng.choice(sorted(held))
    held[key] = by_json(rng, held[key], values)
    return join(json.dumps(header), body)


# ---- lines ----------------------------------------------------------------------------------


def by_lines(rng: random.Random, data: bytes, values: list[str]) -> bytes:
    """A line of JSON or CSV: damaged, doubled, moved, quoted."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    way = rng.randrange(7)
    if way <= 2 and line.startswith(b"{"):
        with contextlib.suppress(UnicodeEncodeError):
            line = by_json(rng, line.decode(), values).encode()
    elif way == 3:
        line = by_bytes(rng, line, data)
    elif way == 4:
        fields = line.split(b",")
        field = rng.choice(
            (b'"', b'""', b'"a\nb"', b"x" * 140_000, b"\0", b"a" * 1000, b"", b'" "')
        )
        fields.insert(rng.randrange(len(fields) + 1), field)
        line = b",".join(fields)
    elif way == 5:
        lines.insert(rng.randrange(len(lines)), line)
    else:
        line = rng.choice(
            (b"", b"#version: 0.2", b"a", b"a b c", b" ", b"a  b", b"\xff", b"\xc4\xa0 a")
        )
    lines[at] = line
    return b"\n".join(lines)


# ---- what stands in the file's place --------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """`put(path, outside, data)` puts something else at `path`. `refused`: whether every reader has
    to refuse it; "of a folder": only one that reads what lies in one folder."""

    name: str
    put: Callable[[Path, Path, bytes], Any]
    refused: bool | str = True


def _fifo_outside(path: Path, outside: Path, data: bytes) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(outside / "pipe")
    path.symlink_to(outside / "pipe")


def _socket(path: Path, outside: Path, data: bytes) -> None:
    with (
        socket.socket(socket.AF_UNIX) as s,
        contextlib.suppress(OSError),
    ):  # a path too long for one
        s.bind(str(path))


def _chain(path: Path, outside: Path, data: bytes) -> None:
    (path.parent / "step").symlink_to(outside / "file")
    path.symlink_to("step")


def _secret(path: Path, outside: Path, data: bytes) -> None:
    (outside / "environ").write_bytes(b"PATH=/bin\0SECRET=42\0")
    path.symlink_to(outside / "environ")


def _within(path: Path, outside: Path, data: bytes) -> None:
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "file").write_bytes(data)
    path.symlink_to(Path("sub") / "file")


def _sparse(path: Path, outside: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.truncate(path, 10**12)  # of which the disk holds almost none


PLACES = [
    Place("a link to a file outside", lambda p, o, d: p.symlink_to(o / "file"), "of a folder"),
    Place(
        "a link by ../ to a file outside",
        lambda p, o, d: p.symlink_to(os.path.relpath(o / "file", p.parent)),
        "of a folder",
    ),
    Place("a link to a link to a file outside", _chain, "of a folder"),
    Place("a link to another's secret", _secret, "of a folder"),
    Place("a link to /dev/zero", lambda p, o, d: p.symlink_to("/dev/zero")),
    Place("a link to /dev/null", lambda p, o, d: p.symlink_to("/dev/null")),
    Place("a link to a pipe", _fifo_outside),
    Place("a link to a folder", lambda p, o, d: p.symlink_to(o)),
    Place("a link to itself", lambda p, o, d: p.symlink_to(p.name)),
    Place("a link to nothing", lambda p, o, d: p.symlink_to("nothing")),
    Place("a link within the folder", _within, False),
    Place("a pipe", lambda p, o, d: os.mkfifo(p)),
    Place("a socket", _socket),
    Place("a folder", lambda p, o, d: p.mkdir()),
    Place("nothing", lambda p, o, d: None, False),
    Place("a file of 10^12 bytes that holds a few", _sparse),
]

# ---- one of all -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    how: str
    data: bytes | None  # the new bytes, or
    place: Place | None = None  # what stands there instead


def draw(rng: random.Random, kind: str, data: bytes, other: bytes, values: list[str]) -> Damage:
    """Damage to a file of `kind` ("tensors", "state", "json", "lines") that holds `data`; `other`
    is one of its kind."""
    part = rng.random()
    if part < 0.06:
        place = rng.choice(PLACES)
        return Damage(place.name, None, place)
    if part < 0.12:
        return Damage("something else", instead(rng, data))
    if part < 0.40:
        return Damage("bytes", by_bytes(rng, data, other))
    if kind == "tensors" or (kind == "state" and part < 0.7):
        return Damage("the header of tensors", by_header(rng, data, values))
    if kind == "state":
        return Damage("the metadata of tensors", by_metadata(rng, data, values))
    if kind == "json":
        text = by_json(rng, data.decode(), values)
        text = (
            re.sub(r"\d+", lambda m: rng.choice(CHOSEN[:14]), text, count=1)
            if part > 0.97
            else text
        )
        return Damage("JSON", text.encode("utf-8", "surrogatepass"))
    return Damage("lines", by_lines(rng, data, values))
