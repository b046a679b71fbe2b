"""How much memory a training step takes on a GPU, and which batch would fit: for the sentence that
somebody reads who has run out of it."""

from collections.abc import Sequence

from minprefix.errors import counted
from minprefix.gpt2 import HEAD_ROWS, Config
from minprefix.model import GPT2


def step_bytes(config: Config, lengths: Sequence[int], P: int, itemsize: int = 4) -> int:
    """What a step needs beside the weights, for sequences of these lengths that see P slots, all
    but the first token of each a target: an estimate from what stays until the backward has used
    it, and from the largest of what comes and goes."""
    C, F, V = config.n_embd, config.n_inner or 4 * config.n_embd, config.vocab_size
    N, B, T = sum(lengths), len(lengths), max(lengths)
    # each layer keeps two layernorms' xhat, q, k, v and the slope of its GELU
    kept = config.n_layer * N * (5 * C + F)
    head = min(HEAD_ROWS, N) * V + 3 * N * C
    # keys, values, queries and dz heads first, some of them twice; pattern and dscores
    attention = B * (T + P) * 9 * C + 2 * B * config.n_head * T * (T + P)
    return itemsize * (kept + max(head, N * (F + 5 * C) + attention))


def batch_that_fits(config: Config, lengths: Sequence[int], P: int, free: int) -> int:
    """How many of these sequences, the longest of them, have room in so many bytes: 0 if none."""
    longest = sorted(lengths, reverse=True)
    for n in range(len(longest), 0, -1):
        if step_bytes(config, longest[:n], P) <= free:
            return n
    return 0


def weight_bytes(model: GPT2) -> int:
    return sum(a.nbytes for a in model.weights.values())


def free_bytes(model: GPT2) -> int:
    """What the GPU has for a step beside the weights of the model: what nobody holds, and what
    CuPy holds for arrays that come and go."""
    import cupy

    in_pool = cupy.get_default_memory_pool().total_bytes()
    return max(0, cupy.cuda.runtime.memGetInfo()[0] + in_pool - weight_bytes(model))


def no_room_for(model: GPT2) -> str:
    """What its weights take, and what the GPU has."""
    import cupy

    free = cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().total_bytes()
    return (
        f"the weights of model {model.name!r} take {weight_bytes(model) / 1e6:,.0f} MB, and the "
        f"GPU has {free / 1e6:,.0f} MB that no other program holds: nvidia-smi says which ones do; "
        "end them, take a smaller model, or stay with --backend numpy"
    )


def out_of_memory(model: GPT2, lengths: Sequence[int], P: int) -> str:
    """What it needed, what was free, and which batch would fit."""
    free, needed = free_bytes(model), step_bytes(model.config, lengths, P)
    fits = batch_that_fits(model.config, lengths, P, free)
    if fits == len(lengths):  # the estimate was too low, or memory lies in pieces
        fits = fits // 2
    what = f"--micro-batch-size {fits} would fit" if fits else "not even one sequence would fit"
    return (
        f"the GPU is out of memory: a step over {counted(len(lengths), 'sequence')} of together "
        f"{counted(sum(lengths), 'token')} needs about {needed / 1e6:,.0f} MB beside the weights, "
        f"and {free / 1e6:,.0f} MB are free: {what}"
    )
