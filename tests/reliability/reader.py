"""Reads the folder of a run again and again until a line comes from stdin, and prints how often it
found what. Everything it finds must be whole.

    python -m tests.reliability.reader FOLDER WHOLE
"""

import json
import select
import sys
import time
from collections import Counter
from pathlib import Path

from tests.reliability.runs import STATE, STEPS, holds_prefix, log, numbers


def main(out: Path, whole: Path) -> int:
    count: Counter[str] = Counter()
    lines = log(whole)
    while not select.select([sys.stdin], [], [], 0)[0]:
        count["reads"] += 1
        if (out / STATE).exists():
            assert 0 <= numbers(out)["step"] <= STEPS
            count["states"] += 1
        if (out / "log.jsonl").exists():
            text = (out / "log.jsonl").read_text(encoding="utf-8")
            whole_lines = text[: text.rfind("\n") + 1].splitlines()  # the last may be under way
            steps = [json.loads(line)["step"] for line in whole_lines]
            assert steps == [line["step"] for line in lines[: len(steps)]]
        count["prefixes"] += holds_prefix(out, whole)
        time.sleep(0.005)
    print(json.dumps(count))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
