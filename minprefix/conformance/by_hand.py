"""Each op on numbers that one can work out with a pencil: the checks that owe nothing to the
reference, nor to any other program."""

import math
from copy import deepcopy
from typing import Any

import numpy as np

from minprefix.conformance.cases import axes, numbers
from minprefix.conformance.check import Expected, Grade
from minprefix.conformance.implementation import Implementation, NotOffered
from minprefix.ops.contract import Array


def f(*rows: Any) -> Array:
    return np.array(rows, dtype=np.float64)


_EMBED = (
    np.array([1, 0, 1]),
    np.array([0, 1, 2]),
    f([1, 2], [3, 4]),
    f([10, 20], [30, 40], [50, 60]),
)
_LN3 = math.log(3)
_U = math.sqrt(2 / math.pi) * 1.044715  # the argument of GELU's tanh at x = 1
_SLOPE = 0.5 * (1 + math.tanh(_U)) + 0.5 / math.cosh(_U) ** 2 * math.sqrt(2 / math.pi) * 1.134145

#: op -> the arguments of its functions, where "cache" is what the forward gave; and the results
BY_HAND: dict[str, tuple[dict[str, tuple[Any, ...]], dict[str, Array]]] = {
    "embed": (
        {"embed": _EMBED, "embed_backward_params": (f([1, 2], [3, 4], [5, 6]), *_EMBED)},
        {
            "x": f([13, 24], [31, 42], [53, 64]),
            "dwte": f([3, 4], [6, 8]),  # token 1 stands at 0 and 2
            "dwpe": f([1, 2], [3, 4], [5, 6]),
        },
    ),
    "layernorm": (
        # mean 2, variance 1, and with eps = 3 a deviation of sqrt(1 + 3) = 2
        {
            "layernorm": (f([1, 3]), f(2, 2), f(0, 1), 3.0),
            "layernorm_backward_params": (f([1, 0]), "cache"),
            "layernorm_backward": (f([1, 0]), "cache"),
        },
        {
            "out": f([-1, 2]),
            "cache.xhat": f([-0.5, 0.5]),
            "cache.rstd": f([0.5]),
            "dgain": f(-0.5, 0),
            "dbias": f(1, 0),
            "dx": f([0.375, -0.375]),  # 2 * d/dx0 of c / sqrt(c^2 + 3), c = (x0 - x1) / 2 = -1
        },
    ),
    "linear": (
        {
            "linear": (f([1, 2]), f([1, 2, 3], [4, 5, 6]), f(10, 20, 30)),
            "linear_backward_params": (f([1, 0, 2]), f([1, 2])),
            "linear_backward": (f([1, 0, 2]), f([1, 2, 3], [4, 5, 6])),
        },
        {
            "out": f([19, 32, 45]),
            "dweight": f([1, 0, 2], [2, 0, 4]),
            "dbias": f(1, 0, 2),
            "dx": f([7, 16]),
        },
    ),
    "gelu": (
        {"gelu": (f([0, 1, -1]),), "gelu_backward": (f([2, 1, 1]), "cache")},
        {
            "out": f([0, 0.8411919906082768, -0.15880800939172324]),
            "dx": f([1, _SLOPE, 1 - _SLOPE]),  # the derivative at -x is 1 minus that at x
        },
    ),
    "attention": (
        # hs = 4, so the scale is 1/2. One token, q = (2, 0, 0, 0): its score with a key is that
        # key's first number. Slot ln 3, token 0: the pattern is 3/4, 1/4.
        {
            "attention": (
                *(f([[2, 0, 0, 0]]), f([[0, 0, 0, 0]]), f([[0, 4, 0, 0]])),
                *([f([[_LN3, 0, 0, 0]])], [f([[8, 0, 0, 0]])], np.array([0, 1])),
            ),
            "attention_backward": (f([[1, 0, 0, 0]]), "cache"),
        },
        {
            "z": f([[6, 1, 0, 0]]),
            "cache.pattern[0]": f([[0.75, 0.25]]),
            # dpattern = (8, 0), its mean under the pattern 6, so dscores = (3/4 * 2, 1/4 * -6)
            "dq": f([[0.75 * _LN3, 0, 0, 0]]),
            "dk": f([[-1.5, 0, 0, 0]]),
            "dv": f([[0.25, 0, 0, 0]]),
            "dprefix_k[0]": f([[1.5, 0, 0, 0]]),
            "dprefix_v[0]": f([[0.75, 0, 0, 0]]),
        },
    ),
    "cross_entropy": (
        {
            "cross_entropy": (f([0, _LN3]), np.array([0]), f(2)),
            "cross_entropy_backward": ("cache",),
        },
        {
            "loss": np.array(2 * math.log(4)),  # the probabilities are 1/4 and 3/4
            "cache.probs": f([0.25, 0.75]),
            "dlogits": f([-1.5, 1.5]),
        },
    ),
}


def by_hand(op: str, implementation: Implementation, grade: Grade) -> None:
    calls, want = deepcopy(BY_HAND[op])  # a function may overwrite what it consumes
    expected, cache = Expected(want, 1e-12), list[Any]()
    for function, arguments in calls.items():
        if any(isinstance(a, str) for a in arguments) and not cache:
            continue  # the forward gave none, and that is reported of the forward
        own = [cache[0] if isinstance(a, str) else implementation.own(a) for a in arguments]
        try:
            result = implementation.call(function, *own)
        except NotOffered as error:
            grade.not_implemented.append(str(error))
            continue
        if function == op and isinstance(result, tuple | list) and len(result) == 2:
            cache = [result[1]]
        for name, got in numbers(implementation, function, result).items():
            if name in want:
                grade.compare(function, name, got, expected, axes(function, name))
