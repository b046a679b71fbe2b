"""Small models, and the PyTorch oracle. The oracle lives in the tests only."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import DynamicCache, GPT2LMHeadModel

from minprefix import GPT2, Config, errors
from minprefix.conformance.adapters import gpt2_config

torch.set_num_threads(1)  # more only wait for each other: the matrices are tiny
# a shell's & ignores Ctrl-C, which the processes that the tests start would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("repeatable", derandomize=True)  # a red run can be run again
settings.load_profile("repeatable")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"  # real data, where a machine has it


@pytest.fixture(autouse=True)
def _notes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note is given once in a process, and here once in a test."""
    monkeypatch.setattr(errors, "_given", set())


@pytest.fixture(scope="session")
def e2e() -> Path:
    if not (SHARED_DATA / "e2e").is_dir():
        pytest.skip("the E2E dataset is not on this machine")
    return SHARED_DATA / "e2e"


@pytest.fixture(scope="session")
def gpt2_bpe() -> Path:
    if not (SHARED_DATA / "gpt2-bpe").is_dir():
        pytest.skip("GPT-2's vocab.json and merges.txt are not on this machine")
    return SHARED_DATA / "gpt2-bpe"


def random_model(config: Config, seed: int = 0, dtype: str = "float64") -> GPT2:
    """Every weight random and of a size that makes every part of the arithmetic matter."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in config.shapes().items():
        center = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        weights[name] = (center + rng.normal(0, 0.15, shape)).astype(dtype)
    return GPT2(config, weights, name="random")


@pytest.fixture
def config() -> Config:
    return Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=64, eos_token_id=0)


@pytest.fixture
def model(config: Config) -> GPT2:
    return random_model(config)


def to_hf(model: GPT2) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights and precision."""
    hf = GPT2LMHeadModel(gpt2_config(model.config)).to(getattr(torch, str(model.dtype))).eval()
    state = {
        n if n.startswith("lm_head") else f"transformer.{n}": torch.tensor(a)
        for n, a in model.weights.items()
    }
    state.setdefault("lm_head.weight", state["transformer.wte.weight"])
    hf.load_state_dict(state)
    return hf


def hf_logits(
    hf: GPT2LMHeadModel, ids: np.ndarray, kv: torch.Tensor | None = None, offset: int = 0
) -> torch.Tensor:
    """(T, V) of one sequence that sees the keys and values kv (L, 2, NH, P, hs) first."""
    cache = DynamicCache()
    if kv is not None:
        for i in range(kv.shape[0]):
            cache.update(kv[i, 0][None], kv[i, 1][None], i)
    positions = torch.arange(len(ids))[None] + offset
    return hf(torch.as_tensor(ids)[None], past_key_values=cache, position_ids=positions).logits[0]


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b| / max |b|: per tensor, relative to its largest value."""
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    scale = np.abs(b).max(initial=0.0)
    delta = np.abs(a - b).max(initial=0.0)
    return float(delta / scale) if scale else float(delta)
