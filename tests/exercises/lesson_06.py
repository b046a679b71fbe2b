import numpy as np

from minprefix.gpt2 import Stream, embedding, forward, head
from minprefix.ops import reference
from tests.exercises import wrong


@wrong("embed", says="the zoo's positions-ignored")
def positions_are_left_out(tokens, positions, wte, wpe):
    return wte[tokens]


@wrong("embed", says="the zoo's positions-from-the-row")
def a_position_is_the_number_of_the_row(tokens, positions, wte, wpe):
    return wte[tokens] + wpe[np.arange(len(tokens)) % len(wpe)]


@wrong("embed_backward_params", says="the zoo's repeated-token-counted-once")
def a_token_that_is_there_twice_counts_once(dx, tokens, positions, wte, wpe):
    _, dwpe = reference.embed_backward_params(dx, tokens, positions, wte, wpe)
    dwte = np.zeros_like(wte, dtype=dx.dtype)
    dwte[tokens] += dx
    return dwte, dwpe


@wrong("embed_backward_params", says="the zoo's repeated-position-counted-once")
def a_position_that_is_there_twice_counts_once(dx, tokens, positions, wte, wpe):
    dwte, _ = reference.embed_backward_params(dx, tokens, positions, wte, wpe)
    dwpe = np.zeros_like(wpe, dtype=dx.dtype)
    dwpe[positions] += dx
    return dwte, dwpe


def _decoding(problem, prefix_is_kept=True, second="v"):
    """Right as it stands; each answer below changes one thing."""
    w, cfg, rows = problem.weights, problem.config, []
    for tokens, which in zip(problem.sequences, problem.prefix_of, strict=True):
        past = [tuple(kv) for kv in problem.prefixes[which]]
        P = problem.prefixes[which].shape[3]
        position = problem.position_offsets[which]
        for token in tokens:
            stream = Stream(
                np.array([token]), np.array([position]), np.array([0, 1]), [[kv] for kv in past]
            )
            x = embedding(stream, w, reference)
            x, blocks = forward(x, stream, w, cfg, reference)
            rows.append(head(x, w, cfg, reference)[0])
            position += 1
            for i, block in enumerate(blocks):
                kept = block.attn.attention
                new = kept.k, getattr(kept, second)
                past[i] = tuple(
                    np.concatenate([old, a.swapaxes(0, 1)], axis=1)
                    for old, a in zip(past[i], new, strict=True)
                )
            if not prefix_is_kept:  # the first call alone sees it
                past = [tuple(a[:, P:] for a in kv) for kv in past]
                P = 0
    return {"logits": np.stack(rows)}


@wrong("run_decoding", says="the zoo's prefix-lost-after-the-first-token")
def the_prefix_is_given_to_the_first_token_alone(problem):
    return _decoding(problem, prefix_is_kept=False)


@wrong("run_decoding", says="the zoo's keys-cached-as-values")
def keys_are_kept_as_values(problem):
    return _decoding(problem, second="k")
