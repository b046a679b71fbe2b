"""The contract of operations, and who fulfils it. Nothing in here imports the rest of the house."""

from typing import cast

from minprefix.ops import contract, numpy_ops, reference
from minprefix.ops.contract import Ops

__all__ = ["BACKENDS", "Ops", "contract", "get", "numpy_ops", "reference"]

# cast: it keeps caches of its own
BACKENDS: dict[str, Ops] = {"numpy": cast(Ops, numpy_ops), "reference": reference}


def get(ops: "str | Ops") -> Ops:
    """An implementation by its name, or any object that has the functions of the contract.

    Raises ValueError for a name that is not in `BACKENDS`.
    """
    if not isinstance(ops, str):
        return ops
    if ops not in BACKENDS:
        raise ValueError(
            f"backend {ops!r} does not exist: expected one of {', '.join(sorted(BACKENDS))}"
        )
    return BACKENDS[ops]
