"""The process that does one job: `python -m tools.bench.worker JOB` prints the answer, one line
of JSON. The number of threads comes through the environment, before any library is loaded."""

import json
import sys
from typing import Any


def main(text: str) -> None:
    job: dict[str, Any] = json.loads(text)
    task, who, arguments = job["task"], job["who"], job["arguments"]
    if who == "ours":
        from tools.bench import ours

        answer = getattr(ours, task)(arguments)
    else:
        import torch

        from tools.bench import peers

        torch.set_num_threads(job["threads"])
        answer = getattr(peers, task)(arguments, who)
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
