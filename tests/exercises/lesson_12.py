import numpy as np

from tests.exercises import wrong


def _tables(wte, wpe, dx):
    return np.zeros(wte.shape, dx.dtype), np.zeros(wpe.shape, dx.dtype)


@wrong("embed_backward_params", says="the zoo's repeated-token-counted-once")
def a_token_that_occurs_twice_counts_once(dx, tokens, positions, wte, wpe):
    dwte, dwpe = _tables(wte, wpe, dx)
    dwte[tokens] += dx
    np.add.at(dwpe, positions, dx)
    return dwte, dwpe


@wrong("embed_backward_params", says="the zoo's repeated-position-counted-once")
def a_position_of_two_sequences_counts_once(dx, tokens, positions, wte, wpe):
    dwte, dwpe = _tables(wte, wpe, dx)
    np.add.at(dwte, tokens, dx)
    dwpe[positions] += dx
    return dwte, dwpe


@wrong("embed_backward_params", says="the zoo's position-gradient-by-token")
def the_copied_line_still_says_tokens(dx, tokens, positions, wte, wpe):
    dwte, dwpe = _tables(wte, wpe, dx)
    np.add.at(dwte, tokens, dx)
    np.add.at(dwpe, tokens, dx)
    return dwte, dwpe
