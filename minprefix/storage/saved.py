"""A prefix, or a rival, as files hold it: what the readers return, and what the writers take."""

from typing import Any, NamedTuple

import numpy as np

from minprefix.errors import InputError


class Saved(NamedTuple):
    """The keys and values of a prefix, and the MLP that they were computed from if there is one."""

    kv: np.ndarray  # (layers, 2, NH, P, hs), [:, 0] keys and [:, 1] values
    layers: tuple[int, ...] | None  # that see it; None: all of the model's
    position_offset: int  # the position of the first real token
    mlp: dict[str, np.ndarray] | None = None


class SavedMethod(NamedTuple):
    """One of prefix-tuning's rivals: see `minprefix.method.Method`."""

    name: str
    options: dict[str, Any]
    parameters: dict[str, np.ndarray]  # P-tuning's: `prompt` (P, C), without its encoder
    encoder: dict[str, np.ndarray] | None = None  # P-tuning's, where it was saved, too
    n_layer: int | None = None  # of the base, where PEFT's files say it,
    n_head: int | None = None  # and its heads


def flatten(kv: np.ndarray) -> np.ndarray:
    """(layers, 2, NH, P, hs) -> (P, layers*2*NH*hs): PEFT's `prompt_embeddings`."""
    n, two, NH, P, hs = kv.shape
    return kv.transpose(3, 0, 1, 2, 4).reshape(P, n * two * NH * hs)


def unflatten(flat: np.ndarray, n_layers: int, n_head: int, head_size: int) -> np.ndarray:
    """The inverse of `flatten`."""
    kv = flat.reshape(len(flat), n_layers, 2, n_head, head_size)  # (P, layers, 2, NH, hs)
    return kv.transpose(1, 2, 3, 0, 4).copy()


def check_finite(a: np.ndarray, what: str) -> None:
    if not np.isfinite(a).all():
        raise InputError(f"{what} holds NaN or infinity: it is damaged")


def converted(a: np.ndarray, dtype: str) -> np.ndarray:
    """`a` in another type. A number that it cannot hold becomes infinity, which readers refuse."""
    with np.errstate(over="ignore"):
        return a.astype(dtype)
