"""How objects show themselves in a notebook: short HTML, all text in it escaped. Heat maps are
inline SVG in shades of grey, so that they look the same on light and dark pages and on paper."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from minprefix.errors import counted
from minprefix.ops import DEVICES, to

if TYPE_CHECKING:
    from minprefix.batch import Batch
    from minprefix.model import GPT2
    from minprefix.prefix import Prefix
    from minprefix.trace.record import Record, Trace

ROWS, COLUMNS = 16, 48  # of a heat map
SHADES = 16
SEQUENCES, TOKENS = 8, 24  # of a batch
RECORDS = 12  # of a trace, at each end


def model(m: "GPT2") -> str:
    c = m.config
    facts = [
        ("layers", c.n_layer),
        ("heads", f"{c.n_head} of size {c.head_size}"),
        ("width", c.n_embd),
        ("vocabulary", c.vocab_size),
        ("positions", c.n_positions),
        ("parameters", f"{m.n_parameters:,}, frozen"),
        ("head", "tied to the embedding" if c.tie_word_embeddings else "separate"),
        ("tokenizer", "none" if m.tokenizer is None else "yes"),
        ("numbers", f"{m.dtype}, {DEVICES[m.backend]}"),
    ]
    return _facts(f"GPT2 {m.name}", facts)


def prefix(p: "Prefix") -> str:
    kv = p.kv
    _, _, NH, P, hs = kv.shape
    facts = [
        ("slots", P),
        ("layers", ", ".join(map(str, p.layers)) or "none"),
        ("heads", f"{NH} of size {hs}"),
        ("tokens from position", p.position_offset),
        ("trained", f"{p.n_parameters:,} numbers: {', '.join(p.parameters)}"),
        ("numbers", f"{kv.dtype}, {DEVICES[p.backend]}"),
    ]
    shown = _facts(type(p).__name__, facts)
    if not kv.size:
        return shown
    sizes = to(abs(kv).mean(axis=(2, 4)), "numpy").swapaxes(0, 1)  # (2, layers, P)
    maps = []
    for what, every in zip(("keys", "values"), sizes, strict=True):
        a, said = _slice(every, rows=COLUMNS)
        maps.append(f"<td>mean size of {what}, layer by slot {said}{_heat(a)}</td>")
    return f"{shown}<table><tr>{''.join(maps)}</tr></table>"


def batch(b: "Batch") -> str:
    rows, targets = [], set((b.rows + 1).tolist())
    for i in range(min(len(b), SEQUENCES)):
        start, end = int(b.offsets[i]), int(b.offsets[i + 1])
        ids = [
            f"<b><u>{b.tokens[j]}</u></b>" if j in targets else str(b.tokens[j])
            for j in range(start, min(end, start + TOKENS))
        ]
        more = f" … {end - start - TOKENS} more" if end - start > TOKENS else ""
        predicted = len(targets & set(range(start, end)))
        cells = [str(i), str(end - start), str(predicted), str(b.prefix[i])]
        rows.append([*cells, _Html(" ".join(ids) + more)])
    heads = ("sequence", "tokens", "predicted", "prefix", "token ids (bold: predicted)")
    return _headed(repr(b)) + _table(heads, rows, len(b) - len(rows))


def record(r: "Record") -> str:
    facts = [
        ("op", f"{r.op} ({r.direction})"),
        ("formula", r.formula),
        ("line", f"{r.line}: {r.text}" if r.text else ""),
        ("from", ", ".join(r.inputs)),
        ("shape", f"{r.shape} {r.value.dtype}"),
        ("summary", str(r.summary)),
    ]
    shown = _facts(r.key, [(name, value) for name, value in facts if value])
    if not r.value.size:
        return shown
    a, said = _slice(r.value)
    return f"{shown}<div>{escape(said)}{_heat(a)}</div>"


def trace(t: "Trace") -> str:
    left_out = max(0, len(t) - 2 * RECORDS)
    shown = t.records[:RECORDS] + t.records[RECORDS + left_out :]
    rows = [(str(r.number), r.key, r.op, str(r.shape), str(r.summary)) for r in shown]
    if left_out:
        rows.insert(RECORDS, ("…", f"{left_out} more", "", "", ""))
    return _headed(repr(t)) + _table(("number", "name", "op", "shape", "summary"), rows, 0)


LEFT = ' style="text-align:left"'


class _Html(str):
    """Text that is HTML already."""


def _cell(value: object) -> str:
    return f"<td{LEFT}>{value if isinstance(value, _Html) else escape(str(value))}</td>"


def _headed(title: str) -> str:
    return f"<div><b>{escape(title)}</b></div>"


def _facts(title: str, facts: Iterable[tuple[str, object]]) -> str:
    rows = (f'<tr><th scope="row"{LEFT}>{escape(n)}</th>{_cell(value)}</tr>' for n, value in facts)
    return f"{_headed(title)}<table>{''.join(rows)}</table>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left_out: int) -> str:
    head = "".join(f'<th scope="col"{LEFT}>{escape(h)}</th>' for h in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    more = f"<div>… {left_out} more</div>" if left_out else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _slice(value: np.ndarray, rows: int = ROWS) -> tuple[np.ndarray, str]:
    """The first rows and columns of the last two axes, and words that say so."""
    a = np.atleast_2d(value)
    first = a[(0,) * (a.ndim - 2)]  # (rows, columns)
    shown = first[:rows, :COLUMNS]
    if shown.size == value.size:
        return shown, ""
    at = f"at [{', '.join(['0'] * (a.ndim - 2))}] " if a.ndim > 2 else ""
    return shown, f"{at}the first {shown.shape[0]} x {shown.shape[1]} numbers"


def _heat(a: np.ndarray) -> str:
    """(rows, columns) as cells from white, the least, to black, the most; a number that is not
    finite is crossed out. One path for each shade keeps the SVG short."""
    a = a.real.astype(np.float64)
    finite = np.isfinite(a)
    least, most = (a[finite].min(), a[finite].max()) if finite.any() else (np.nan, np.nan)
    part = (np.where(finite, a, least) - least) / ((most - least) or 1)
    shade = np.minimum(part * SHADES, SHADES - 1).astype(int) if finite.any() else np.zeros(a.shape)
    paths = []
    for s in range(SHADES):
        cells = "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere((shade == s) & finite))
        if cells:
            level = 255 - s * 255 // (SHADES - 1)
            paths.append(f'<path d="{cells}" fill="rgb({level},{level},{level})"/>')
    crossed = "".join(f"M{x} {y}l1 1m-1 0l1 -1" for y, x in np.argwhere(~finite))
    if crossed:
        paths.append(f'<path d="{crossed}" stroke="#808080" stroke-width="0.15"/>')
    rows, columns = a.shape
    said = f"white is {least:.3g}, black is {most:.3g}" + ("; crossed: not finite" * bool(crossed))
    return (
        f'<div><svg role="img" aria-label="heat map, {counted(rows, "row")}, '
        f'{counted(columns, "column")}, {said}" '
        f'viewBox="0 0 {columns} {rows}" width="{columns * 10}" height="{rows * 10}" '
        'shape-rendering="crispEdges" style="border:1px solid #808080;background:#fff">'
        f"{''.join(paths)}</svg><br/><small>{said}</small></div>"
    )
