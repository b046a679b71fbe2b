"""Is this backward the gradient of this forward? For any function on arrays of NumPy, PyTorch, JAX
or CuPy.

    from minprefix.gradcheck import assert_gradients, gradcheck

    print(gradcheck(rmsnorm, rmsnorm_backward, x, gain))     # a report; true if it passed
    assert_gradients(rmsnorm, rmsnorm_backward, x, gain)     # in a test

`function` says how the two functions are called, `slopes` measures derivatives, `check` compares
and explains. None of them needs more than NumPy.
"""

from minprefix.gradcheck.check import assert_gradients, gradcheck
from minprefix.gradcheck.function import Pair
from minprefix.gradcheck.report import Report
from minprefix.gradcheck.reproducer import entry
from minprefix.gradcheck.slopes import Slope

__all__ = ["Pair", "Report", "Slope", "assert_gradients", "entry", "gradcheck"]
