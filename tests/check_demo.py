"""What the demo promises, held against its metrics.json: `python check_demo.py FILE`."""

import json
import sys


def failures(metrics: dict) -> list[str]:
    """The promises that do not hold."""
    before, after = metrics["before"], metrics["after"]
    promises = {
        "slot error rate after is at most 5%": after["slot_error_rate"] <= 0.05,
        "slot error rate before is above 60%": before["slot_error_rate"] > 0.60,
        "the loss fell": after["loss"] < before["loss"],
        "exact match rose": after["exact_match"] > before["exact_match"],
        "the base is unchanged": metrics["base_unchanged"] is True,
        "under 2% was trained": metrics["trained_parameters"] < 0.02 * metrics["base_parameters"],
    }
    return [promise for promise, holds in promises.items() if not holds]


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as f:
        broken = failures(json.load(f))
    print("\n".join(f"broken: {promise}" for promise in broken) or "the demo keeps its promises")
    sys.exit(bool(broken))
