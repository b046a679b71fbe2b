"""One HTML file that walks through a forward and a backward: `minprefix view`.

The file holds all it needs and asks the network for nothing. Its text, script and style are
`page.html`, `page.js` and `page.css` beside this module; their data is made here.
"""

import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minprefix import gpt2
from minprefix.batch import Batch
from minprefix.ops import reference
from minprefix.trace import tracer
from minprefix.trace.instrument import Source, names_read, source_of
from minprefix.trace.mirror import mirrored
from minprefix.trace.packing import Values, first_row
from minprefix.trace.record import Record, Trace
from minprefix.trace.wiring import BETWEEN, MADE, Wiring, model_line, without_part

if TYPE_CHECKING:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix

#: what attention calls
_CALLED = {"attention": ["_heads_first", "softmax", "visible"]}
#: the names of arguments in the ops' text
_ARGUMENTS = {"x", "dx", "dout", "dz", "logits", "probs"}


def page(
    model: "GPT2", ids: Sequence[int], prefix: "Prefix | None" = None, loss_from: int = 1
) -> str:
    """The HTML of one sequence of token ids, `ids[loss_from:]` predicted.

    With a prefix the model is frozen, and the gradient goes where training it needs it. Without one
    it is plain GPT-2, and every weight has its gradient. Raises InputError for all that `trace`
    refuses.
    """
    batch = Batch.pack([ids], loss_from)
    weights = sum(a.nbytes for a in model.weights.values())  # the gradients are as large
    need: Literal["prefix", "all"] = "all" if prefix is None else "prefix"
    t = tracer.trace(model, batch, prefix, max_bytes=2**30 + 2 * weights, need=need)
    t = Trace([record for record in t if record.value.size], t.about)  # not dprefix_k of 0 slots
    text, style, script = (
        Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    data = json.dumps(_data(model, batch, prefix, t), separators=(",", ":"), allow_nan=False)
    parts = {
        "policy": (
            f"default-src 'none'; script-src {_sha256(script)}; style-src {_sha256(style)}; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "script": script,
        "data": data.replace("<", "\\u003c"),  # no text of the data can end its <script>
    }
    # in one go, so that no marker is found in the data
    return re.sub(r"@(\w+)@", lambda m: parts[m[1]], text)


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(model: "GPT2", batch: Batch, prefix: "Prefix | None", trace: Trace) -> dict[str, Any]:
    wiring, source = Wiring(model.config.n_layer, model.weights), source_of(reference)
    values = Values(batch, trace)
    places = [wiring.place_of(record.name) for record in trace]
    reads = _inputs(trace, wiring, places)
    records = []
    for record, place, inputs in zip(trace, places, reads, strict=True):
        s = record.summary
        alone = record.sequence is None or record.name not in trace
        entry = {
            "key": record.key,
            "link": record.name if alone else record.key,
            "backward": record.direction == "backward",
            "op": record.op,
            "place": place,
            "inside": record.inside,
            "formula": _formula(record, source),
            "line": record.line or model_line(record.name, record.op),
            "inputs": inputs,
            "dtype": str(record.value.dtype),
            "summary": [*map(_number, s[:4]), s.nan, s.zero, list(s.histogram)],
            **values.of(record),
        }
        if record.direction == "backward":
            entry["mirror"] = _mirror(record, place, source, trace, places)
        if record.name.endswith(".pattern") and prefix is not None:
            P = record.shape[2] - record.shape[1]
            shares = record.value[:, :, :P].sum(axis=-1)  # (NH, T)
            entry["share"] = [[_number(x) for x in row] for row in shares]
        records.append(entry)
    return {
        "about": {
            "model": repr(model),
            "prefix": None if prefix is None else repr(prefix),
            "tokens": [shown(model, i) for i in batch.tokens.tolist()],
            "rows": batch.rows.tolist(),
            "loss": _number(trace.about["loss"]),
            "layers": model.config.n_layer,
            "lowest": min(prefix.layers if prefix else (), default=model.config.n_layer),
        },
        "places": _column(model, wiring),
        "records": records,
        "arriving": _arriving(trace),
        "code": _code(trace),
        "picked": values.picked,
        "words": {str(i): shown(model, i) for i in sorted(values.words)},
        "values": values.packed,
    }


def shown(model: "GPT2", token: int) -> str:
    """A token on one line: a blank as ␣, an invisible character by its number."""
    if model.tokenizer is None:
        return str(token)
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    text = ""
    for c in model.tokenizer.decode([token], skip_special_tokens=False):
        hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        text += signs.get(c) or (f"\\u{ord(c):04x}" if hidden else c)
    return text or f"#{token}"


def _number(x: float) -> float | None:
    """3 digits of it; JSON has no NaN and no infinity."""
    return float(f"{x:.3g}") if np.isfinite(x) else None


def _column(model: "GPT2", wiring: Wiring) -> list[dict[str, Any]]:
    """The model as a column of ops, each with the weights that it holds."""
    shapes = {name: list(a.shape) for name, a in model.weights.items()}
    return [
        {"name": at.name, "op": at.op, "weights": [[name, shapes[name]] for name in at.weights]}
        for at in wiring.places.values()
    ]


def _forward_op(op: str) -> str:
    return op.removesuffix("_params").removesuffix("_backward")


def _inputs(trace: Trace, wiring: Wiring, places: Sequence[str]) -> list[list[Any]]:
    """The inputs of each record's line: numbers of records, and names of weights."""
    ends = list[tuple[str, Sequence[str]]]()  # from the last record to the first: op, its inputs
    for record in reversed(trace.records):
        same = ends and ends[-1][0] == record.op
        ends.append((record.op, ends[-1][1] if same and record.inside else record.inputs))
    known: dict[str, int] = {}
    read = []
    for record, end, name in zip(trace, reversed(ends), places, strict=True):
        if record.op == "linear_backward_params":
            place = wiring.places[name].from_row(first_row(record))
            x = place.takes if record.name.endswith("weight") else ()
            read.append([*x, place.dout])
        else:
            read.append(_on_the_line(record, end[1], name, known))
        known[record.key] = record.number
    return [[known.get(key, known.get(f"{key}#0", key)) for key in keys] for keys in read]


def _on_the_line(
    record: Record, given: Sequence[str], place: str, known: dict[str, int]
) -> list[str]:
    """The values and weights that a record's line names; the op's own inputs, `given`, where the
    line names an argument or no known value."""
    names = names_read(record.text)
    read = []
    for name in names:
        of_each = f"{place}.{name.removesuffix('s')}#0"  # dq of all that are in dqs
        at = (f"{place}.{name}#0", f"{place}.{name}", of_each)
        read += [key for key in at if key in known][:1]
    read.sort(key=known.__getitem__)
    weights = [key for key in given if key.endswith((".weight", ".bias"))]
    if not read or names & _ARGUMENTS - {key.rpartition(".")[2] for key in read}:
        more = [key for key in given if key not in weights]
        if record.inside:  # backward, x is what comes after dout: du_dx of gelu_backward
            more = more[1:2] if "x" in names and record.direction == "backward" else more[:1]
        read += [key for key in more if key not in read]
    for here, key in zip(({"weight", "gain", "wte"}, {"bias", "wpe"}), weights, strict=False):
        read += [key] if names & here else []
    return read


def _mirror(
    record: Record, place: str, source: Source, trace: Trace, places: Sequence[str]
) -> dict[str, Any]:
    """The forward line whose derivative this is: a line, the record that it made, or words."""
    last = record.name.rpartition(".")[2]
    if record.op in BETWEEN:  # a sum, or join
        of = "q" if last == "dqkv" else last.removeprefix("d")  # q, k, v = qkv
        name = record.name.removesuffix(last) + of
        made = trace[name].number if name in trace else None
        return {"record": made, "words": BETWEEN[record.op].mirrors}
    found = mirrored(source, record.op, without_part(last))
    if found is None:
        return {"record": None, "words": ""}
    here = (r for r, at in zip(trace, places, strict=True) if at == place and r.line == found[0])
    made = next((r.number for r in here if r.direction == "forward"), None)
    return {"record": made, "line": found[0]}


def _arriving(trace: Trace) -> list[dict[str, Any]]:
    """The gradient in the prefix of each layer, in the order in which it arrives."""
    found = []
    for record in trace:
        if re.search(r"\.dprefix_[kv]$", record.name):
            norm = _number(float(np.linalg.norm(record.value)))
            layer, of = int(record.name.split(".")[1]), record.name[-1]
            found.append({"layer": layer, "of": of, "record": record.number, "norm": norm})
    return found


def _formula(record: Record, source: Source) -> tuple[str, str]:
    """The formula, and where it is from."""
    formula, origin = source.formula.get(record.op, (record.formula, ""))
    return formula.removeprefix(f"{_forward_op(record.op)}: "), origin


def _code(trace: Trace) -> dict[str, Any]:
    """op -> the file and the functions to show for it: number of the first line, lines."""
    ops, model = source_of(reference), source_of(gpt2)
    code: dict[str, dict[str, Any]] = {}
    for record in trace:
        if record.line:
            for op in (record.op, _forward_op(record.op)):
                shown = [_listing(ops, name) for name in (op, *_CALLED.get(op, ()))]
                code[op] = {"file": "reference.py", "functions": shown}
    for made in MADE.values():
        op = "add_backward" if made.op == "add" and made.name == "dx" else made.op
        entry = code.setdefault(op, {"file": "gpt2.py", "functions": []})
        if (listing := _listing(model, made.function)) not in entry["functions"]:
            entry["functions"].append(listing)
    return code


def _listing(source: Source, function: str) -> tuple[int, list[str]]:
    first, last = source.functions[function]
    return first, source.lines[first - 1 : last]
