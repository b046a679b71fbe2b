"""The table of lesson 9, "Does it help?": a flat prefix and one through the MLP, each over a range
of rates and several seeds. `python -m tools.detour` prints it (a few minutes on two cores)."""

from collections.abc import Sequence

import numpy as np

from minprefix import GPT2, Batch, Prefix, loss_and_grad, optim
from minprefix.cli.parser import Parser
from minprefix.data.world import table_to_text

FLAT_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MLP_RATES = tuple(lr / 100 for lr in FLAT_RATES)
LAST = 5  # a run's end: the mean of so many losses


def batches_of(model: GPT2, seed: int, steps: int, size: int = 4) -> list[Batch]:
    """Lesson 9's batches: short descriptions, in an order that `seed` decides."""
    examples = []
    for source, target in table_to_text(400, "train", seed=0):
        prompt = model.encode(source + "\n")
        ids = [*prompt, *model.encode(target), model.config.eos_token_id]
        if len(ids) <= 60:
            examples.append((ids, len(prompt)))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(examples)) for _ in range(steps)])
    drawn = [[examples[i] for i in order[s * size : (s + 1) * size]] for s in range(steps)]
    return [Batch.pack([ids for ids, _ in d], [start for _, start in d]) for d in drawn]


def ends(model: GPT2, prefix: Prefix, lr: float, batches: Sequence[Batch]) -> float:
    """Train `prefix` in place. -> the mean of the last losses."""
    adam, losses = optim.AdamW(), []
    for step, batch in enumerate(batches):
        loss, dkv = loss_and_grad(model, prefix, batch)
        rate = optim.learning_rate(step, len(batches), lr, warmup=0, schedule="linear")
        adam.step(prefix.parameters, prefix.backward(dkv), rate)
        losses.append(loss)
    return float(np.mean(losses[-LAST:]))


def first_move(model: GPT2, network: Prefix, batch: Batch) -> float:
    """The median move of a number of kv at the first step through the network, in units of the
    rate. A flat prefix moves by 1."""
    start, lr = network.kv.copy(), 1e-5
    _, dkv = loss_and_grad(model, network, batch)
    optim.AdamW().step(network.parameters, network.backward(dkv), lr)
    return float(np.median(np.abs(network.kv - start)) / lr)


def measure(model: GPT2, steps: int, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """-> the losses at the end, (seeds, rates) for "flat" and for "MLP", and "moves" (seeds,)."""
    found: dict[str, list[object]] = {"flat": [], "MLP": [], "moves": []}
    for seed in seeds:
        batches = batches_of(model, seed, steps)

        def network(seed: int = seed) -> Prefix:
            return Prefix.mlp(model.config, 10, hidden=512, seed=seed)

        flat = [ends(model, network().fold(), lr, batches) for lr in FLAT_RATES]
        through = [ends(model, network(), lr, batches) for lr in MLP_RATES]
        found["flat"].append(flat)
        found["MLP"].append(through)
        found["moves"].append(first_move(model, network(), batches[0]))
    return {name: np.array(values) for name, values in found.items()}


def table(found: dict[int, dict[str, np.ndarray]]) -> str:
    """The medians over the seeds for each budget, in Markdown; then each seed at its best rate."""
    header = "".join(f" flat, {steps} steps | MLP, {steps} steps |" for steps in found)
    lines = [f"| rate |{header}", "|---:|" + "---:|---:|" * len(found)]
    for i, (lr, slower) in enumerate(zip(FLAT_RATES, MLP_RATES, strict=True)):
        cells = ""
        for ends_of in found.values():
            cells += "".join(f" {np.median(ends_of[name][:, i]):.4f} |" for name in ("flat", "MLP"))
        lines.append(f"| {lr:g}, {slower:g} |{cells}")
    for steps, ends_of in found.items():
        for name in ("flat", "MLP"):
            best = " ".join(f"{loss:.5f}" for loss in ends_of[name].min(axis=1))
            lines.append(f"\n{steps} steps, {name}, each seed at its best rate: {best}")
    moves = " ".join(f"{move:.0f}" for move in next(iter(found.values()))["moves"])
    lines.append(f"\nthe first step through the MLP moves kv by this many rates: {moves}")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(prog="python -m tools.detour", description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64], help="the budgets")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1 (default 5)")
    given = parser.parse_args()
    model = GPT2.load("tiny")
    print(table({steps: measure(model, steps, range(given.seeds)) for steps in given.steps}))


if __name__ == "__main__":
    main()
