"""How much GPU memory a training step takes, and which batch would fit: for the sentence that says
that there was too little."""

from collections.abc import Sequence

from minprefix.errors import counted
from minprefix.gpt2 import HEAD_ROWS, Config


def step_bytes(config: Config, lengths: Sequence[int], P: int, itemsize: int = 4) -> int:
    """What a step needs beside the weights, for sequences of these lengths that see P slots, all
    but the first token of each a target: an estimate of what stays until the backward has used
    it, and of the largest arrays that come and go."""
    C, F, V = config.n_embd, config.n_inner or 4 * config.n_embd, config.vocab_size
    N, B, T = sum(lengths), len(lengths), max(lengths)
    # each layer keeps two layernorms' xhat, q, k, v and the slope of its GELU
    kept = config.n_layer * N * (5 * C + F)
    head = min(HEAD_ROWS, N) * V + 3 * N * C
    # keys, values, queries and dz heads first, some of them twice; pattern and dscores
    attention = B * (T + P) * 9 * C + 2 * B * config.n_head * T * (T + P)
    return itemsize * (kept + max(head, N * (F + 5 * C) + attention))


def batch_that_fits(config: Config, lengths: Sequence[int], P: int, free: int) -> int:
    """How many of these sequences, the longest ones, fit into `free` bytes: 0 if none."""
    longest = sorted(lengths, reverse=True)
    for n in range(len(longest), 0, -1):
        if step_bytes(config, longest[:n], P) <= free:
            return n
    return 0


def out_of_memory(config: Config, weight_bytes: int, lengths: Sequence[int], P: int) -> str:
    """The sentence about a step that did not fit beside the weights: what it needed, what was free,
    and which batch would fit."""
    free, needed = max(0, _free_bytes() - weight_bytes), step_bytes(config, lengths, P)
    fits = batch_that_fits(config, lengths, P, free)
    if fits == len(lengths):  # the estimate was too low, or memory lies in pieces
        fits = fits // 2
    what = f"--micro-batch-size {fits} would fit" if fits else "not even one sequence would fit"
    return (
        f"the GPU is out of memory: a step over {counted(len(lengths), 'sequence')} of together "
        f"{counted(sum(lengths), 'token')} needs about {needed / 1e6:,.0f} MB beside the weights, "
        f"and {free / 1e6:,.0f} MB are free: {what}"
    )


def no_room_for(name: str, weight_bytes: int) -> str:
    """The sentence about a model whose weights do not fit."""
    return (
        f"the weights of model {name!r} take {weight_bytes / 1e6:,.0f} MB, and the GPU has "
        f"{_free_bytes() / 1e6:,.0f} MB that no other program holds: nvidia-smi says which ones "
        "do; end them, take a smaller model, or stay with --backend numpy"
    )


def _free_bytes() -> int:
    """What no other program holds: CuPy keeps some of it for arrays that come and go."""
    import cupy

    in_pool = cupy.get_default_memory_pool().total_bytes()
    return int(cupy.cuda.runtime.memGetInfo()[0] + in_pool)
