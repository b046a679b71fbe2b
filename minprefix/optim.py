"""AdamW, learning-rate schedules and clipping: plain functions on dictionaries of arrays."""

import math
from dataclasses import dataclass, field

import numpy as np

from minprefix.ops import home
from minprefix.ops.contract import Array

Params = dict[str, np.ndarray]


@dataclass
class AdamW:
    """Loshchilov & Hutter, 2019, algorithm 2: the decay is not part of the gradient, and both
    moments are debiased.

    `weight_decay` is applied to every parameter; each step is given its learning rate.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    t: int = 0  # steps taken
    m: Params = field(default_factory=dict)  # first moment, by parameter name
    v: Params = field(default_factory=dict)  # second moment

    def step(self, params: Params, grads: Params, lr: float) -> None:
        """Change `params` in place."""
        self.t += 1
        for name, g in grads.items():
            p = params[name]
            if name not in self.m:
                self.m[name], self.v[name] = np.zeros_like(p), np.zeros_like(p)
            m, v = self.m[name], self.v[name]
            if home(p) == "cupy":
                self._step_on_gpu(p, g, m, v, lr)
                continue
            m += (1 - self.beta1) * (g - m)
            v += (1 - self.beta2) * (g * g - v)
            m_hat = m / (1 - self.beta1**self.t)
            v_hat = v / (1 - self.beta2**self.t)
            p -= lr * (m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * p)

    def _step_on_gpu(self, p: Array, g: Array, m: Array, v: Array, lr: float) -> None:
        """The same, in one kernel."""
        from minprefix.ops import cupy_ops

        betas = (self.beta1, self.beta2)
        cupy_ops.adamw(p, g, m, v, lr, *betas, self.eps, self.weight_decay, self.t)


SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(step: int, steps: int, lr: float, warmup: int, schedule: str) -> float:
    """The rate of step 0 .. steps-1: it rises in a straight line over `warmup` steps, then falls to
    0 at `steps`, or stays ("constant")."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)  # 0 .. 1
    if schedule == "linear":
        return lr * (1 - done)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * done))
    return lr


def global_norm(grads: Params) -> float:
    """sqrt of the sum of squares over all gradients."""
    # added up in float64 where the gradients live: one number leaves the GPU, not one for each
    return math.sqrt(float(sum(np.vdot(g, g).real.astype(np.float64) for g in grads.values())))


def clip(grads: Params, norm: float, max_norm: float) -> None:
    """Scale all gradients, whose global norm is `norm`, in place so that it is at most
    `max_norm`."""
    if norm > max_norm:
        for g in grads.values():
            g *= max_norm / norm
