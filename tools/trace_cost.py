"""What tracing costs: `python -m tools.trace_cost` times a forward and backward of the tiny
model with and without it, in turns, and prints the ratio."""

import statistics
import time
from collections.abc import Callable

from minprefix import GPT2, Batch, Prefix, loss_and_grad
from minprefix.cli.parser import Parser
from minprefix.data.world import table_to_text
from minprefix.errors import counted
from minprefix.ops.threads import limit
from minprefix.trace import trace


def ratio(untraced: Callable[[], object], traced: Callable[[], object], rounds: int) -> list[float]:
    """Of each round: the traced run's seconds to the untraced one's."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    for work in (untraced, traced):  # the first run compiles the text that it reads
        work()
    return [seconds(traced) / seconds(untraced) for _ in range(rounds)]


def main() -> None:
    parser = Parser(prog="python -m tools.trace_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    limit(args.threads)
    model = GPT2.load()
    prefix = Prefix.normal(model.config, 10, seed=0)
    pairs = list(table_to_text(16, "test", seed=0))
    sequences = [model.encode(f"{source}\n{target}") for source, target in pairs]
    starts = [len(model.encode(source + "\n")) for source, _ in pairs]
    for B in (1, 16):
        batch = Batch.pack(sequences[:B], loss_from=starts[:B])
        for ops in ("reference", "numpy"):
            ratios = ratio(
                lambda: loss_and_grad(model, prefix, batch, ops=ops),  # noqa: B023
                lambda: trace(model, batch, prefix, ops=ops),  # noqa: B023
                args.rounds,
            )
            print(
                f"{ops:9s} {counted(B, 'sequence')}: {statistics.median(ratios):.2f} times the "
                f"untraced run ({min(ratios):.2f} to {max(ratios):.2f} over {args.rounds} rounds)"
            )


if __name__ == "__main__":
    main()
