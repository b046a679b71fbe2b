"""The demo's pairs: records of the tiny world and their descriptions."""

import hashlib
import json

from minprefix.data import world
from minprefix.data.pairs import Pair

TRAIN, VALID, TEST = 2000, 64, 100


def pairs(split: str, n: int, seed: int) -> list[Pair]:
    """n records and their descriptions; no name of one split occurs in another."""
    drawn = world.table_to_text(n, split, seed)
    return [Pair(s, t, f"tiny world, {split} record {i}") for i, (s, t) in enumerate(drawn)]


def recorded_pairs(of: str, seed: int) -> list[Pair]:
    """The training or validation pairs ("data", "valid") of the demo with this seed."""
    return pairs("train", TRAIN, seed) if of == "data" else pairs("valid", VALID, 0)


def fingerprint(pairs: list[Pair]) -> str:
    """sha256 of their sources and targets."""
    said = json.dumps([[pair.source, pair.target] for pair in pairs])
    return hashlib.sha256(said.encode()).hexdigest()
