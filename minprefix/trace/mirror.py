"""Where the lines are: of the model what it does itself, and of a backward line the forward line
that it mirrors."""

from minprefix import gpt2
from minprefix.trace.instrument import Source, source_of
from minprefix.trace.record import Record

#: what the model does between two ops, by op, sums by their names -> how its line in gpt2.py begins
IN_THE_MODEL = {
    "resid_mid": "x = x + ops.linear(z,",
    "resid_post": "x = x + ops.linear(g,",
    "split": "q, k, v = (qkv.reshape",
    "given": "prefix_k, prefix_v = [kv[0]",
    "dresid_mid": "dx = dx + ops.layernorm_backward(dm,",
    "dresid_post": "dx = dx + ops.layernorm_backward(da,",
    "dresid_pre": "dx = dx + ops.layernorm_backward(da,",
    "join": "dqkv = np.stack(",
}

#: (op, name) of a backward -> (op, name) of the forward line whose derivative it takes; "return" is
#: what an op gives back
MIRROR: dict[tuple[str, str], tuple[str, str]] = {
    ("embed_backward_params", "dwte"): ("embed", "return"),
    ("embed_backward_params", "dwpe"): ("embed", "return"),
    ("layernorm_backward", "dxhat"): ("layernorm", "return"),
    ("layernorm_backward", "mean_dxhat"): ("layernorm", "centred"),
    ("layernorm_backward", "mean_dxhat_xhat"): ("layernorm", "var"),
    ("layernorm_backward", "return"): ("layernorm", "xhat"),
    ("layernorm_backward_params", "return"): ("layernorm", "return"),
    ("linear_backward", "return"): ("linear", "out"),
    ("linear_backward_params", "return"): ("linear", "out"),
    ("gelu_backward", "du_dx"): ("gelu", "tanh"),
    ("gelu_backward", "return"): ("gelu", "return"),
    ("attention_backward", "dz_b"): ("attention", "z"),
    ("attention_backward", "dvalues"): ("attention", "z"),
    ("attention_backward", "dpattern"): ("attention", "z"),
    ("attention_backward", "row_sum"): ("attention", "pattern"),
    ("attention_backward", "dscores"): ("attention", "pattern"),
    ("attention_backward", "dq_b"): ("attention", "scores"),
    ("attention_backward", "dkeys"): ("attention", "scores"),
    ("attention_backward", "dprefix_k"): ("_heads_first", "keys"),
    ("attention_backward", "dprefix_v"): ("_heads_first", "values"),
    ("attention_backward", "dq"): ("_heads_first", "q_b"),
    ("attention_backward", "dk"): ("_heads_first", "keys"),
    ("attention_backward", "dv"): ("_heads_first", "values"),
    ("cross_entropy_backward", "one_hot"): ("cross_entropy", "nll"),
    ("cross_entropy_backward", "return"): ("cross_entropy", "return"),
}

#: what the model does between two ops, backward -> in words, its mirror in the forward
BETWEEN: dict[str, str] = {
    "add": "x + f(x): the gradient goes both ways, around f and through it, and the two add up",
    "join": "q, k, v = qkv: their gradients stand side by side again",
}


def mirrored(source: Source, op: str, name: str) -> tuple[int, str] | None:
    """The forward line, and its number, that the line of a backward `op` which makes `name`
    mirrors; None for a forward op, and for what has no one line."""
    target = MIRROR.get((op, name)) or MIRROR.get((op, "return"))
    if target is None:
        return None
    line = source.made[target]
    return line, source.statement[line]


def model_line(record: Record) -> int:
    """The line of gpt2.py that makes it between two ops; 0 for what none of them makes, as the
    batch is given from outside."""
    if not record.name.startswith("blocks."):
        return 0
    last = record.name.rpartition(".")[2]
    start = IN_THE_MODEL.get(last if record.op == "add" else record.op)
    lines = enumerate(source_of(gpt2).lines, 1)
    return next((n for n, text in lines if start and text.strip().startswith(start)), 0)
