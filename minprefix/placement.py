"""Where a prefix sits in a model: the layers that see it, and the position of the first token."""

from collections.abc import Sequence

from minprefix.errors import InputError, counted, quoted
from minprefix.gpt2 import Config

LEAVE_SOME = "shorten the prefix, or train with --position-offset 0 (position_offset=0)"


def shape_of(
    config: Config, length: int, layers: Sequence[int] | None, position_offset: int | None
) -> tuple[int, ...]:
    """-> (layers, 2, NH, P, hs): the shape of a prefix of P slots. Raises InputError if the model
    has no such layers, or no position left for a token."""
    if length < 0:
        raise InputError(f"prefix length is {length}: expected 0 or more")
    if position_offset is None and length >= config.n_positions:  # where the first token would be
        raise InputError(
            f"prefix length is {length}, the model has "
            f"{counted(config.n_positions, 'position')}: none would be left for a token; "
            f"{LEAVE_SOME}"
        )
    named = check_layers(layers, config.n_layer if layers is None else len(layers), config.n_layer)
    return (len(named), 2, config.n_head, length, config.head_size)


def check_layers(
    layers: Sequence[int] | None, n: int, n_layer: int | None = None
) -> tuple[int, ...]:
    """The n layers that see a prefix, the first n by default. Raises InputError if they are not n,
    not ascending, or not among a model's `n_layer`."""
    if layers is None:
        return tuple(range(n))
    chosen = tuple(layers)
    if chosen != tuple(sorted(set(chosen))) or (chosen and chosen[0] < 0) or len(chosen) != n:
        raise InputError(
            f"layers {quoted(list(chosen))}: expected {n} different ones from 0, ascending"
        )
    if n_layer is not None and chosen and chosen[-1] >= n_layer:
        raise InputError(
            f"layer {chosen[-1]} does not exist: the model has layers 0 to {n_layer - 1}"
        )
    return chosen


def check_offset(position_offset: int | None, length: int) -> int:
    """The position of the first token: by default the one after the slots. Raises InputError."""
    if position_offset is None:
        return length
    if position_offset < 0:
        raise InputError(f"position_offset is {position_offset}: expected 0 or more")
    return position_offset


def ranges(layers: tuple[int, ...]) -> str:
    """ "0-3", "1,3" or "none"."""
    if layers and layers == tuple(range(layers[0], layers[-1] + 1)) and len(layers) > 2:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers)) or "none"
