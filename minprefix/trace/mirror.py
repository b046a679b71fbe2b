"""The forward line of the reference that a line of its backward mirrors."""

from minprefix.trace.instrument import Source

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


def mirrored(source: Source, op: str, name: str) -> tuple[int, str] | None:
    """The forward line, and its number, that the line of a backward `op` which makes `name`
    mirrors; None for a forward op, and for what has no one line."""
    target = MIRROR.get((op, name)) or MIRROR.get((op, "return"))
    if target is None:
        return None
    line = source.made[target]
    return line, source.statement[line]
