"""One HTML file that walks through a forward and a backward: `minprefix view`.

The file holds all it needs and asks the network for nothing. Its text, script and style are
`page.html`, `page.js` and `page.css` beside this module; here the data for them is made. A number
keeps 3 significant digits, which float16 holds exactly once a power of two is taken out of each
tensor.
"""

import argparse
import ast
import base64
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minprefix.errors import InputError, counted

if TYPE_CHECKING:
    from minprefix.batch import Batch
    from minprefix.data.pairs import Template
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.trace.instrument import Source
    from minprefix.trace.record import Record, Trace

#: numbers on a page, or so many for each record; 2 bytes each and a third more in base64 keep the
#: file of a small model under 5 MB
MOST_NUMBERS, OF_A_RECORD = 1_600_000, 4_500
#: of the logits of a row: its target, and so many that the model finds likeliest
LIKELIEST = 12

#: what attention calls
_CALLED = {"attention": ["_heads_first", "softmax", "visible"]}
#: how ops call what they are given
_ARGUMENTS = {"x", "dx", "dout", "dz", "logits", "probs"}
#: a linear layer -> the gradient that comes to it
_INCOMING = {
    "attn.c_attn": "attn.dqkv",
    "attn.c_proj": "dresid_mid",
    "mlp.c_fc": "mlp.dpre",
    "mlp.c_proj": "dresid_post",
}
#: the axes of what the source gives no shape comment
_AXES = {
    "split": ("N", "NH", "hs"),
    "given": ("NH", "P", "hs"),
    "join": ("N", "3C"),
    "linear": ("N", "out"),
    "gelu": ("N", "F"),
    "gelu_backward": ("N", "F"),
    "linear_backward_params": ("out",),
    "attention": ("NH", "T", "P+T"),
}


# ---- the page ---------------------------------------------------------------------------------


def page(
    model: "GPT2", ids: Sequence[int], prefix: "Prefix | None" = None, loss_from: int = 1
) -> str:
    """The HTML of one sequence of token ids, `ids[loss_from:]` predicted.

    With a prefix the model is frozen, and the gradient goes where training it needs it. Without one
    it is plain GPT-2, and every weight has its gradient. Raises InputError for all that `trace`
    refuses.
    """
    from minprefix.batch import Batch
    from minprefix.trace.record import Trace
    from minprefix.trace.tracer import trace

    batch = Batch.pack([ids], loss_from)
    weights = sum(a.nbytes for a in model.weights.values())  # the gradients are as large
    need: Literal["prefix", "all"] = "all" if prefix is None else "prefix"
    t = trace(model, batch, prefix, max_bytes=2**30 + 2 * weights, need=need)
    t = Trace([record for record in t if record.value.size], t.about)  # not dprefix_k of 0 slots
    here = Path(__file__).parent
    style, script = (_read(here / name) for name in ("page.css", "page.js"))
    parts = {
        "policy": (
            f"default-src 'none'; script-src {_sha256(script)}; style-src {_sha256(style)}; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "script": script,
        "data": _json(_data(model, batch, prefix, t)),
    }
    # in one go: what the data says is no marker
    return re.sub(r"@(\w+)@", lambda m: parts[m[1]], _read(here / "page.html"))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(value: Any) -> str:
    """For a <script>: no text of the data can end it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(model: "GPT2", batch: "Batch", prefix: "Prefix | None", trace: "Trace") -> dict[str, Any]:
    from minprefix.ops import reference
    from minprefix.trace.instrument import source_of
    from minprefix.trace.mirror import model_line

    source = source_of(reference)
    values = _Values(model, batch, trace)
    places = [_place(record) for record in trace]
    reads = _inputs(trace, places)
    records = []
    for record, place, inputs in zip(trace, places, reads, strict=True):
        entry = {
            "key": record.key,
            "link": record.name if _alone(record, trace) else record.key,
            "backward": record.direction == "backward",
            "op": record.op,
            "place": place,
            "inside": record.inside,
            "formula": _formula(record, source),
            "line": record.line or model_line(record),
            "inputs": inputs,
            "dtype": str(record.value.dtype),
            "summary": _summary(record),
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
        "places": _model(model),
        "records": records,
        "arriving": _arriving(trace),
        "code": _code(trace),
        "picked": values.picked,
        "words": {str(i): shown(model, i) for i in sorted(values.words)},
        "values": values.packed,
    }


def shown(model: "GPT2", token: int) -> str:
    """A token as it can stand in a line: a blank as ␣, what is invisible by its number."""
    if model.tokenizer is None:
        return str(token)
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    text = ""
    for c in model.tokenizer.decode([token], skip_special_tokens=False):
        hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        text += signs.get(c) or (f"\\u{ord(c):04x}" if hidden else c)
    return text or f"#{token}"


def _alone(record: "Record", trace: "Trace") -> bool:
    return record.sequence is None or record.name not in trace


def _summary(record: "Record") -> list[Any]:
    s = record.summary
    return [*map(_number, s[:4]), s.nan, s.zero, list(s.histogram)]


def _number(x: float) -> float | None:
    """3 digits of it; JSON has no NaN and no infinity."""
    return float(f"{x:.3g}") if np.isfinite(x) else None


# ---- where in the model a record stands -------------------------------------------------------


def _model(model: "GPT2") -> list[dict[str, Any]]:
    """The model as a column of ops, each with the weights that it holds."""
    block = [
        ("ln_1", "layernorm"), ("attn.c_attn", "linear"), ("attn", "attention"),
        ("attn.c_proj", "linear"), ("resid_mid", "add"), ("ln_2", "layernorm"),
        ("mlp.c_fc", "linear"), ("mlp", "gelu"), ("mlp.c_proj", "linear"), ("resid_post", "add"),
    ]  # fmt: skip
    column = [("embed", "embed", ["wte.weight", "wpe.weight"])]
    for i in range(model.config.n_layer):
        for name, op in block:
            own = [f"h.{i}.{name}.weight", f"h.{i}.{name}.bias"]
            column.append((f"blocks.{i}.{name}", op, own))
    head = "lm_head.weight" if "lm_head.weight" in model.weights else "wte.weight"
    column.append(("ln_f", "layernorm", ["ln_f.weight", "ln_f.bias"]))
    column += [("head", "linear", [head]), ("loss", "cross_entropy", [])]
    return [
        {"name": name, "op": op,
         "weights": [[w, list(model.weights[w].shape)] for w in own if w in model.weights]}
        for name, op, own in column
    ]  # fmt: skip


def _place(record: "Record") -> str:
    """Which op of the column: blocks.3.mlp.c_proj."""
    above, _, last = re.sub(r"\.from_\d+", "", record.name).rpartition(".")
    block = ".".join(record.name.split(".")[:2])
    op = _forward_op(record.op)
    if op == "add":
        return "embed" if last == "dresid_pre" else f"{block}.{last.removeprefix('d')}"
    if op in ("attention", "split", "given", "join"):
        return f"{block}.attn"
    if op == "gelu":
        return f"{block}.mlp"
    if op in ("embed", "cross_entropy"):
        return "loss" if op == "cross_entropy" else op
    weight = next((name for name in record.inputs if name.endswith(".weight")), "")
    if op == "linear" and weight in ("wte.weight", "lm_head.weight"):
        return "head"
    if weight:
        return re.sub(r"^h\.", "blocks.", weight.removesuffix(".weight"))
    return above  # an intermediate, or the gradient of a weight


def _forward_op(op: str) -> str:
    return op.removesuffix("_params").removesuffix("_backward")


def _inputs(trace: "Trace", places: Sequence[str]) -> list[list[Any]]:
    """What the line of each record read: numbers of records, and names of weights."""
    ends: list[Record | None] = [None] * len(trace)  # what the op gives back in the end
    for n in reversed(range(len(trace))):
        record, after = trace.records[n], n + 1
        if not record.inside:
            ends[n] = record
        elif after < len(trace) and trace.records[after].op == record.op:
            ends[n] = ends[after]
    taken = {  # by each linear layer
        place: record.inputs[0]
        for record, place in zip(trace, places, strict=True)
        if record.op == "linear" and not record.inside
    }
    known: dict[str, int] = {}
    read = []
    for record, end, place in zip(trace, ends, places, strict=True):
        if record.op == "linear_backward_params":
            x = [taken[place]] if record.name.endswith("weight") else []
            read.append([*x, _incoming(record, place)])
        else:
            read.append(_on_the_line(record, end.inputs if end else (), place, known))
        known[record.key] = record.number
    return [[known.get(key, known.get(f"{key}#0", key)) for key in keys] for keys in read]


def _on_the_line(
    record: "Record", given: Sequence[str], place: str, known: dict[str, int]
) -> list[str]:
    """By the names on the line of a record; where one of them is an argument, or none is known,
    what its op was `given`."""
    names = _names(record.text)
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


def _incoming(record: "Record", place: str) -> str:
    """The gradient that comes to a linear layer."""
    block, _, layer = re.sub(r"^(blocks\.\d+)\.", r"\1 ", place).partition(" ")
    if layer:
        return f"{block}.{_INCOMING[layer]}"
    return "".join(["dlogits", *re.findall(r"\.from_\d+", record.name)])


def _names(line: str) -> set[str]:
    """What a line reads."""
    tree = ast.parse(f"def f():\n {line or 'pass'}")  # `return` stands in a function
    loaded = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in loaded if isinstance(node.ctx, ast.Load)}


def _mirror(
    record: "Record", place: str, source: "Source", trace: "Trace", places: Sequence[str]
) -> dict[str, Any]:
    """The forward line whose derivative this is: a line, the record that it made, or words."""
    from minprefix.trace.mirror import BETWEEN, mirrored

    last = record.name.rpartition(".")[2]
    if record.op in BETWEEN:
        of = "q" if last == "dqkv" else last.removeprefix("d")  # q, k, v = qkv
        name = record.name.removesuffix(last) + of
        made = trace[name].number if name in trace else None
        return {"record": made, "words": BETWEEN[record.op]}
    found = mirrored(source, record.op, re.sub(r"\.from_\d+", "", last))
    if found is None:
        return {"record": None, "words": ""}
    candidates = [
        r.number
        for r, at in zip(trace, places, strict=True)
        if at == place and r.direction == "forward" and r.line == found[0]
    ]
    return {"record": candidates[0] if candidates else None, "line": found[0]}


def _arriving(trace: "Trace") -> list[dict[str, Any]]:
    """The gradient in the prefix of each layer, in the order in which it arrives."""
    found = []
    for record in trace:
        if re.search(r"\.dprefix_[kv]$", record.name):
            norm = _number(float(np.linalg.norm(record.value)))
            layer, of = int(record.name.split(".")[1]), record.name[-1]
            found.append({"layer": layer, "of": of, "record": record.number, "norm": norm})
    return found


# ---- the source -------------------------------------------------------------------------------


def _formula(record: "Record", source: "Source") -> tuple[str, str]:
    """And where it is from."""
    formula, origin = source.formula.get(record.op, (record.formula, ""))
    return formula.removeprefix(f"{_forward_op(record.op)}: "), origin


@cache
def _gpt2() -> "Source":
    from minprefix import gpt2
    from minprefix.trace.instrument import source_of

    return source_of(gpt2)


def _code(trace: "Trace") -> dict[str, Any]:
    """op -> the file and the functions to show for it: name, number of the first line, lines."""
    from minprefix.ops import reference
    from minprefix.trace.instrument import source_of

    inside = {"reference.py": _functions(source_of(reference)), "gpt2.py": _functions(_gpt2())}
    code: dict[str, tuple[str, list[str]]] = {}
    for record in trace:
        if record.line:
            base = _forward_op(record.op)
            for op in (record.op, base):
                code[op] = "reference.py", [op, *_CALLED.get(op, [])]
        else:
            back = "" if record.direction == "forward" else "_backward"
            code[record.op] = "gpt2.py", [f"attention_half{back}"]
    code["add"] = "gpt2.py", ["attention_half", "mlp_half"]
    code["add_backward"] = "gpt2.py", ["mlp_half_backward", "attention_half_backward"]
    code["join"] = "gpt2.py", ["attention_half_backward"]
    return {
        op: {"file": file, "functions": [inside[file][name] for name in names]}
        for op, (file, names) in code.items()
    }


def _functions(source: "Source") -> dict[str, tuple[int, list[str]]]:
    nodes = ast.parse("\n".join(source.lines)).body
    return {
        node.name: (node.lineno, source.lines[node.lineno - 1 : node.end_lineno])
        for node in nodes
        if isinstance(node, ast.FunctionDef)
    }


# ---- the numbers ------------------------------------------------------------------------------


class _Values:
    """What of each tensor is shown, packed; what is the same twice is kept once."""

    def __init__(self, model: "GPT2", batch: "Batch", trace: "Trace") -> None:
        self.batch, self.V = batch, model.config.vocab_size
        self.packed: list[list[Any]] = []
        self.picked: dict[str, list[list[int]]] = {}  # first row of a part -> ids, for each row
        self.words: set[int] = set()
        self._at: dict[bytes, int] = {}
        for record in trace:
            if re.match(r"logits(\.from_\d+)?$", record.name):
                self._pick(record)
        self._largest = self._caps(trace)

    def _pick(self, record: "Record") -> None:
        """The same tokens for the logits and all that comes of them, so that they compare."""
        start = _part(record)
        targets = self.batch.targets[start:][: len(record.value)]
        ids = []
        for row, target in zip(record.value, targets, strict=True):
            best = np.argsort(-row, kind="stable")[: LIKELIEST + 1].tolist()
            ids.append([int(target), *[i for i in best if i != target][:LIKELIEST]])
        self.picked[str(start)] = ids
        self.words |= {i for row in ids for i in row}

    def _caps(self, trace: "Trace") -> dict[bool, int]:
        """The size of the largest tensor that is shown whole: of attention and the prefix, and of
        the others, which are cut first."""
        sizes: dict[bool, list[int]] = {True: [1], False: [1]}
        for record in trace:
            if not self._is_picked(record):
                sizes[_first(_axes(record))].append(record.value.size)
        room, caps = max(MOST_NUMBERS, OF_A_RECORD * len(trace)), {}
        for first in (True, False):
            cap = max(sizes[first])
            while cap > 256 and np.minimum(sizes[first], cap).sum() > room:
                cap //= 2
            caps[first] = cap
            room -= int(np.minimum(sizes[first], cap).sum())
        return caps

    def _is_picked(self, record: "Record") -> bool:
        return _axes(record) == ("M", "V")

    def of(self, record: "Record") -> dict[str, Any]:
        """The entries of a record that say what to draw."""
        a, axes = np.asarray(record.value, np.float64), _axes(record)
        more: dict[str, Any] = {}
        if self._is_picked(record):
            ids = np.array(self.picked[str(_part(record))])
            a, more["top"] = np.take_along_axis(a, ids, axis=1), str(_part(record))
        elif record.name == "embed.dwte":
            rows = np.unique(self.batch.tokens)
            a, more["ids"] = a[rows], rows.tolist()
            self.words |= set(rows.tolist())
        heads = axes.index("NH") if "NH" in axes else None
        if heads == 1:  # (N, NH, hs) is shown head by head
            a = a.swapaxes(0, 1)
        whole = a.shape
        while a.size > self._largest[_first(axes)]:
            axis = int(np.argmax(a.shape))
            a = a.take(range(-(-a.shape[axis] // 2)), axis=axis)
        drawn = a.reshape((1,) * (3 - a.ndim) + a.shape)
        if a.shape != whole:
            more["cut"] = True
        more |= {"shape": list(record.shape), "axes": list(axes), "drawn": list(drawn.shape)}
        if _part(record):
            more["from"] = _part(record)
        return more | {"value": self._pack(drawn)}

    def _pack(self, a: np.ndarray) -> int:
        half, power = pack(a)
        data = half.tobytes()
        key = hashlib.sha256(data + bytes(str(power), "ascii")).digest()
        if key not in self._at:
            self._at[key] = len(self.packed)
            self.packed.append([power, base64.b64encode(data).decode()])
        return self._at[key]


def pack(a: np.ndarray) -> tuple[np.ndarray, int]:
    """-> half, power: float16 such that half * 2**power is `a` to 3 significant digits.

    A number under 2**-29 of the largest has fewer, and never becomes 0: it is then a subnormal one,
    which the page shows as "nearly 0".
    """
    finite = np.isfinite(a) & (a != 0)
    size = np.abs(np.where(finite, a, 1.0)).astype(np.float64)
    with np.errstate(over="ignore"):
        step = 10.0 ** (np.floor(np.log10(size)) - 2)
    rounded = np.where(finite & (step > 0), np.round(a / np.where(step > 0, step, 1)) * step, a)
    largest = np.abs(rounded[finite]).max(initial=0)
    power = int(np.ceil(np.log2(largest))) - 15 if largest else 0
    half = np.ldexp(rounded, -power).astype("<f2")
    tiny = np.copysign(np.float16(2.0**-24), a).astype("<f2")
    return np.where((half == 0) & (a != 0), tiny, half).astype("<f2"), power


def _first(axes: tuple[str, ...]) -> bool:
    """Attention rows, and what is the prefix's."""
    return "P" in axes or axes[-1:] == ("P+T",)


def _part(record: "Record") -> int:
    """The first row of the logits that a record is of."""
    found = re.search(r"\.from_(\d+)", record.name)
    return int(found[1]) if found else 0


def _axes(record: "Record") -> tuple[str, ...]:
    """What each axis runs over, as the shape comment of its line says: ("NH", "T", "P+T")."""
    said = re.search(r"#.*?\(([^()]*)\)", record.text)
    axes = tuple(re.findall(r"[^,\s]+", said[1])) if said else ()
    ndim = record.value.ndim
    if re.match(r"(head\.out|head\.from_\d+\.out|logits(\.from_\d+)?)$", record.name):
        return ("M", "V")
    guesses = (axes, _AXES.get(record.op, ()), ("N", "C"), ("C",))
    return next((guess for guess in guesses if len(guess) == ndim), ("",) * ndim)


# ---- the command ------------------------------------------------------------------------------


def encode(
    model: "GPT2", prompt: str, target: str | None, template: Any | None
) -> tuple[list[int], int]:
    """-> ids, loss_from. With a template as training has it, the end token at the end; without a
    target every token of the prompt but the first is predicted."""
    if not prompt:
        raise InputError("--prompt is empty: expected text for the model to read")
    if target is not None and not target.strip():
        raise InputError(f"--target is {target!r}: expected the text to predict, or leave it out")
    before = model.encode(template.prompt(prompt) if template else prompt)
    if not before:
        raise InputError(f"--prompt {model.nothing_left(prompt)}")
    after: list[int] = []
    if target is not None:
        after = model.encode(template.completion(target) if template else target)
        if not after:
            raise InputError(f"--target {model.nothing_left(target)}")
        after += model.config.end_tokens[:1] if template else ()
    elif len(before) < 2:
        raise InputError(
            f"--prompt {prompt!r} is {len(before)} token, after which nothing is to be predicted: "
            "give a longer one, or --target TEXT"
        )
    return before + after, len(before) if after else 1


def template_of(args: argparse.Namespace, target: str | None) -> "Template | None":
    """That of --template, else of the prefix's training, else, to join a prompt and a target, the
    usual one; none for a prompt alone and for --raw."""
    from minprefix.data.pairs import Template
    from minprefix.storage.provenance import recorded_template

    if args.raw and args.template is not None:
        raise InputError("--raw takes the prompt as it is: leave out --template")
    text = args.template
    if text is None and args.prefix is not None:
        text = recorded_template(args.prefix) or Template().text
    elif text is None and target is not None:
        text = Template().text
    return None if args.raw or text is None else Template(text)


def view(args: argparse.Namespace) -> int:
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.storage.writing import write_text

    if args.out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {str(args.out)!r}: expected a name that ends in .html")
    template = template_of(args, args.target)
    model = GPT2.load(args.model, revision=args.revision)
    prefix = None if args.prefix is None else Prefix.load(args.prefix, model)
    ids, loss_from = encode(model, args.prompt, args.target, template)
    html = page(model, ids, prefix, loss_from)
    write_text(args.out, html)
    size = len(html.encode()) / 1e6
    print(
        f"{counted(len(ids), 'token')}, {len(ids) - loss_from} predicted; {size:.1f} MB in "
        f"{args.out}"
    )
    return 0
