"""Round trips with the real `adapters` library: `python -m tests.adapters_library`.

That library wants an older transformers than this project's tests, so it needs an environment of
its own, and pytest does not collect this file:

    python -m venv adapters-venv && . adapters-venv/bin/activate
    pip install torch==2.13.0 adapters==1.3.0 && pip install -e .

Both ways, for three shapes of models: a prefix of ours is loaded there, and one that is made and
saved there is loaded here; the logits are compared. `tests/adapters_library.md` keeps the last
result.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import adapters  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from adapters import PrefixTuningConfig  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from minprefix import GPT2, Batch, Config, Prefix  # noqa: E402
from minprefix.generate import Decoding, generate_ids  # noqa: E402
from minprefix.storage.adapters import CONVERT, load_adapters, save_adapters  # noqa: E402

LIMIT = 1e-5  # on logits, in float32
SHAPES = {
    "2 layers, 2 heads of 16": Config(2, 2, 32, 50, 64),
    "3 layers, 4 heads of 8": Config(3, 4, 32, 61, 40),
    "5 layers, 3 heads of 20": Config(5, 3, 60, 97, 128),
}
P, HIDDEN, LONG, SHORT, NEW = 7, 24, 11, 6, 12
COLUMNS = (
    "alone", "padded right", "padded left", "generated",  # within the limit
    "no prefix", "sdpa", "sdpa padded",  # what the others would be with a mistake
)  # fmt: skip


def theirs(model: GPT2, attention: str) -> GPT2LMHeadModel:
    c = model.config
    hf = GPT2LMHeadModel(
        GPT2Config(
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.n_embd,
            vocab_size=c.vocab_size,
            n_positions=c.n_positions,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
            attn_implementation=attention,
        )
    )
    state = {f"transformer.{n}": torch.tensor(a) for n, a in model.weights.items()}
    hf.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    adapters.init(hf)
    return hf.eval()


def random_model(config: Config) -> GPT2:
    """Weights large enough that every part of the arithmetic shows in the logits."""
    rng = np.random.default_rng(0)
    start = GPT2.random(config).weights
    weights = {n: (a + rng.normal(0, 0.15, a.shape)).astype(a.dtype) for n, a in start.items()}
    return GPT2(config, weights, name="random")


def compare(model: GPT2, prefix: Prefix, hf: GPT2LMHeadModel) -> list[float]:
    """By how much the logits differ at most: a sequence alone, two of unequal lengths with padding
    on either side, and each step of greedy decoding with that library's cache. And what would have
    been seen without the prefix."""
    a, b = drawn(model)
    alone, both, pad = ours(model, [a], prefix), ours(model, [a, b], prefix), LONG - SHORT
    long = torch.tensor([a])
    right, left = torch.ones(2, LONG, dtype=torch.long), torch.ones(2, LONG, dtype=torch.long)
    right[1, SHORT:], left[1, :pad] = 0, 0
    positions = (left.cumsum(1) - 1).clamp(min=0)
    to_right = logits(hf, torch.tensor([a, b + [0] * pad]), attention_mask=right)
    rows = torch.tensor([a, [0] * pad + b])
    to_left = logits(hf, rows, attention_mask=left, position_ids=positions)
    with torch.no_grad():
        steps = hf.generate(
            long,
            attention_mask=torch.ones_like(long),
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    (new,) = generate_ids(model, [a], prefix, decoding=Decoding(max_new_tokens=NEW))
    same = steps.sequences[0].tolist() == a + new
    generated = np.stack([step[0].numpy() for step in steps.logits])
    return [
        largest(logits(hf, long)[0] - alone),
        largest(np.concatenate([to_right[0], to_right[1, :SHORT]]) - both),
        largest(np.concatenate([to_left[0], to_left[1, pad:]]) - both),
        largest(generated - ours(model, [a + new], prefix)[LONG - 1 : -1]) if same else np.inf,
        largest(ours(model, [a], None) - alone),
    ]


def fused(model: GPT2, prefix: Prefix, hf: GPT2LMHeadModel) -> list[float]:
    """With PyTorch's fused attention: how far a sequence alone is from ours, and how far a padded
    batch is from a model without a prefix."""
    a, b = drawn(model)
    mask = torch.ones(2, LONG, dtype=torch.long)
    mask[1, SHORT:] = 0
    padded = logits(hf, torch.tensor([a, b + [0] * (LONG - SHORT)]), attention_mask=mask)
    return [
        largest(logits(hf, torch.tensor([a]))[0] - ours(model, [a], prefix)),
        largest(np.concatenate([padded[0], padded[1, :SHORT]]) - ours(model, [a, b], None)),
    ]


def drawn(model: GPT2) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, model.config.vocab_size, n).tolist() for n in (LONG, SHORT)]


def largest(difference: np.ndarray) -> float:
    return float(abs(difference).max())


def ours(model: GPT2, ids: Sequence[Sequence[int]], prefix: Prefix | None) -> np.ndarray:
    return model.logits(Batch.pack(ids, loss_from=[1] * len(ids)), prefix)


def logits(hf: GPT2LMHeadModel, ids: torch.Tensor, **how: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return hf(ids, **how).logits.numpy()


MEASURES = {"eager": compare, "sdpa": fused}


def exported(model: GPT2, prefix: Prefix, folder: Path) -> list[float]:
    """Ours, loaded there."""
    save_adapters(prefix.saved, folder, "ours", model.config.n_layer)
    row = []
    for attention, measure in MEASURES.items():
        hf = theirs(model, attention)
        hf.load_adapter(str(folder), use_safetensors=True, set_active=True)
        row += measure(model, prefix, hf.eval())
    back = Prefix.of(load_adapters(folder, model.config.n_head))
    assert back.kv.tobytes() == prefix.kv.tobytes()
    assert back.layers == prefix.layers
    return row


def imported(model: GPT2, config: PrefixTuningConfig, folder: Path, eject: bool) -> list[float]:
    """Theirs, loaded here: saved, and converted as `load_adapters` asks for."""
    row = []
    for attention, measure in MEASURES.items():
        torch.manual_seed(0)
        hf = theirs(model, attention)
        hf.add_adapter("theirs", config=config, set_active=True)
        if eject:
            hf.eject_prefix_tuning("theirs")
        place = folder / attention
        hf.save_adapter(str(place), "theirs")
        with contextlib.chdir(place):
            exec(CONVERT, {"torch": torch, "safetensors": safetensors})
        prefix = Prefix.of(load_adapters(place, model.config.n_head))
        row += measure(model, prefix, hf.eval())
    return row


def run() -> dict[tuple[str, str], list[float]]:
    rows = {}
    for shape, config in SHAPES.items():
        model, some = random_model(config), list(range(1, config.n_layer))
        for name, prefix in {
            "flat": Prefix.normal(config, P, std=1, position_offset=0),
            "MLP": Prefix.mlp(config, P, HIDDEN, position_offset=0),
            "flat, not in layer 0": Prefix.normal(config, P, 1, layers=some, position_offset=0),
        }.items():
            with tempfile.TemporaryDirectory() as folder:
                rows[shape, f"to it: {name}"] = exported(model, prefix, Path(folder))
        how = {"prefix_length": P, "bottleneck_size": HIDDEN, "dropout": 0.1}
        for name, theirs_config, eject in (
            ("flat", PrefixTuningConfig(flat=True, **how), False),
            ("MLP", PrefixTuningConfig(flat=False, **how), False),
            ("MLP, ejected", PrefixTuningConfig(flat=False, **how), True),
            ("MLP, not in layer 0", PrefixTuningConfig(flat=False, leave_out=[0], **how), False),
        ):
            with tempfile.TemporaryDirectory() as folder:
                row = imported(model, theirs_config, Path(folder), eject)
            rows[shape, f"from it: {name}"] = row
    return rows


def page(rows: dict[tuple[str, str], list[float]]) -> str:
    versions = ", ".join(
        f"{m.__name__} {m.__version__}" for m in (adapters, transformers, torch, safetensors, np)
    )
    lines = [
        f"{date.today()}: {versions}. Largest difference of a logit, float32, limit {LIMIT:g}; "
        "the last three columns have none.",
        "",
        f"| model | prefix | {' | '.join(COLUMNS)} |",
        f"| --- | --- |{' ---: |' * len(COLUMNS)}",
    ]
    for (shape, prefix), row in rows.items():
        lines.append(f"| {shape} | {prefix} | {' | '.join(f'{x:.1e}' for x in row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    rows = run()
    print(page(rows))
    beyond = [key for key, row in rows.items() if not all(x <= LIMIT for x in row[:4])]
    print(f"{len(rows)} round trips, {len(beyond)} beyond the limit {beyond or ''}")
    sys.exit(bool(beyond))
