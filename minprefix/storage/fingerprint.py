"""Fingerprints: of arrays, and of a tokenizer, by which a prefix knows that its base reads text as
before."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minprefix.ops import to
from minprefix.ops.contract import Array
from minprefix.storage.tokenizer import END, read_as_before

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: a text that shows how it splits: blanks, digits, contractions, scripts, an emoji
TEXT = "Hello  world, it's 2021!\n\tdéjà vu; Größe 1.5 — 東京 привет 🙂 name[The Fox], area[city]"


def tokenizer_fingerprint(tokenizer: "Tokenizer", earlier: bool = False) -> str:
    """sha256 over the tokens with their ids, the merges, how a text is split and which tokens are
    cut out of it: the same for tokenizer.json and for vocab.json with merges.txt.

    `earlier`: as version 0.1.0 computed it.
    """
    merges = json.loads(tokenizer.to_str())["model"].get("merges", [])
    # older versions of the library write a merge as one text
    merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items())
    content = [tokens, merges, tokenizer.encode(TEXT, add_special_tokens=False).ids]
    if not earlier and (cut := _cut_out(tokenizer)):  # GPT-2 as it was published has none
        content.append(cut)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def earlier_tokenizer_fingerprint(folder: Path | None) -> str | None:
    """The fingerprint that version 0.1.0 recorded for the tokenizer in `folder`: it did not read
    the files beside it. None without a folder, or if the tokenizer cannot be read."""
    try:
        tokenizer = None if folder is None else read_as_before(folder)
        return None if tokenizer is None else tokenizer_fingerprint(tokenizer, earlier=True)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:  # the library raises bare Exception, and Rust's panics
        return None


def _cut_out(tokenizer: "Tokenizer") -> list[Any]:
    """The tokens that are cut out of a text before it is split, where the list of all tokens does
    not show it: merges could make them, too, or they take blanks along, or stand alone."""
    made = tokenizer.get_vocab(with_added_tokens=False).keys() - {END}
    cut: list[Any] = sorted(
        [token.content, token.lstrip, token.rstrip, token.single_word]
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.content in made or token.lstrip or token.rstrip or token.single_word
    )
    return [*cut, "special tokens are split"] if tokenizer.encode_special_tokens else cut


def digest(arrays: Mapping[str, Array], dtype: type | None = None) -> str:
    """sha256 over the arrays in the order of their names, converted to `dtype` (None: as they
    are)."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        a = to(arrays[name], "numpy")
        a = np.ascontiguousarray(a if dtype is None else a.real.astype(dtype, copy=False))
        sha.update(f"{name}{a.shape}{a.dtype}".encode())
        sha.update(a.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
