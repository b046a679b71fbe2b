"""Prefix-tuning (Li & Liang, 2021) of GPT-2 in plain NumPy, to read, step through and check."""

import os
import sys

# After a product OpenBLAS's threads spin for 2^26 cycles, some 20 ms, before they sleep, and slow
# down the threads that compute meanwhile. 2^14 cycles are some microseconds. OpenBLAS reads this
# once, when NumPy loads it.
if "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")

from minprefix.batch import Batch
from minprefix.errors import InputError
from minprefix.generate import generate
from minprefix.gpt2 import Config
from minprefix.model import GPT2, loss, loss_and_grad, loss_and_weight_grads
from minprefix.prefix import MLPPrefix, Prefix

__version__ = "0.1.0"

__all__ = [
    "GPT2",
    "Batch",
    "Config",
    "InputError",
    "MLPPrefix",
    "Prefix",
    "generate",
    "loss",
    "loss_and_grad",
    "loss_and_weight_grads",
]
