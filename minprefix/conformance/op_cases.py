"""The table of the ops level's cases: which sizes and which special values each op is graded on."""

from typing import Any

from minprefix.conformance.cases import Case

#: op -> name -> why, and the case's sizes, dtype and layout
CASES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "embed": {
        "usual": ("the sum of two rows, and where their gradients go", {}),
        "repeated-tokens": (
            "the gradient of a token that occurs often is the sum over all its places",
            {"N": 9, "V": 2, "n_positions": 3},
        ),
        "one-token": ("N = 1", {"N": 1}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("weights that do not lie in one piece", {"layout": "strided"}),
        "many-tokens": (
            "N and V in the hundreds: more than a block of rows, or a byte, holds",
            {"N": 301, "C": 3, "V": 1030, "n_positions": 300},
        ),
        "wide": ("C beyond 1024, and no multiple of 8", {"N": 3, "C": 1601}),
        "large-vocabulary": (
            "GPT-2's tables: ids beyond 16 bits, and the last and the first row of both",
            {"C": 2, "V": 50257, "n_positions": 1024, "ends": True},
        ),
    },
    "layernorm": {
        "usual": ("mean, variance, gain and bias, and all three ways back", {}),
        "far-from-zero": (
            "a variance computed as E[x^2] - E[x]^2 has lost its digits here",
            {"centre": 1e4},
        ),
        "tiny-variance": (
            "eps stands inside the root, and decides where the variance is small",
            {"spread": 1e-4, "centre": 0.3},
        ),
        "large-eps": ("eps is the argument, not 1e-5", {"eps": 0.1}),
        "one-row": ("N = 1: nothing is normalised over the rows", {"N": 1}),
        "one-column": ("C = 1: the variance is 0", {"C": 1}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
        "many-rows": ("N in the hundreds: more than a block of rows", {"N": 301, "C": 5}),
        "wide": ("C beyond 1024, and no multiple of 8", {"N": 3, "C": 1601}),
        "fresh": ("gain 1 and bias 0, as training starts", {"fresh": True}),
        "zeros": (
            "gains of 0, a constant row, a gradient of 0: nothing may be divided by them",
            {"zeros": True},
        ),
    },
    "linear": {
        "usual": ("x W + b, and its two halves of a backward", {}),
        "square": ("in = out: a transposed weight has the right shape", {"n_in": 5, "n_out": 5}),
        "no-bias": ("bias is None, as in the head", {"bias": False}),
        "one-row": ("N = 1, as in decoding", {"N": 1}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "fortran": ("a transposed view of a weight, as the tied head is", {"layout": "fortran"}),
        "many-rows": ("N in the hundreds: more than a block of rows", {"N": 301}),
        "wide-input": ("in beyond 1024, and no multiple of 8", {"N": 3, "n_in": 1601}),
        "wide-head": (
            "out beyond 1024, and no multiple of 8, over a transposed view and without a bias",
            {"N": 3, "n_out": 1601, "bias": False, "layout": "fortran"},
        ),
        "past-a-tile": (
            "all three sizes beyond a tile's, and no multiples of it",
            {"N": 67, "n_in": 131, "n_out": 70},
        ),
        "zeros": ("rows of 0 in x, weight and dout, and a bias that is mostly 0", {"zeros": True}),
    },
    "gelu": {
        "usual": ("the tanh form and its derivative", {}),
        "near-zero": ("the erf form and the tanh form are closest here", {"spread": 0.1}),
        "far-out": ("nothing overflows, the tails are 0 and x", {"spread": 1e3}),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("x that does not lie in one piece", {"layout": "strided"}),
        "many-rows": ("N in the hundreds: more than a block of rows", {"N": 301}),
        "wide": ("F beyond 1024, and no multiple of 8", {"N": 3, "F": 1601}),
        "whole-numbers": ("0, and numbers that occur often", {"rounded": True}),
    },
    "attention": {
        "one-sequence": ("one sequence with a prefix", {"lengths": (5,), "slots": (3,)}),
        "usual": ("two sequences with a prefix each", {}),
        "no-prefix": ("P = 0 is plain attention", {"slots": (0, 0)}),
        "one-token": (
            "T = 1: it sees the prefix and itself",
            {"lengths": (1, 1, 1), "slots": (3, 1, 0)},
        ),
        "one-head": ("NH = 1", {"heads": 1}),
        "square": (
            "T = P = hs: nothing has a shape of its own",
            {"lengths": (4, 4), "slots": (4, 4), "head_size": 4, "heads": 4},
        ),
        "unequal-lengths": (
            "sequences end where offsets say",
            {"lengths": (1, 6, 3), "slots": (2, 2, 2)},
        ),
        "unequal-prefixes": (
            "each sequence sees its own prefix, of its own length",
            {"lengths": (4, 2, 3), "slots": (5, 0, 1)},
        ),
        "long-prefix": ("a prefix longer than the text", {"lengths": (2, 3), "slots": (17, 17)}),
        "large-scores": (
            "scores around 1e4: exp overflows unless the largest is taken off",
            {"common": 1e4},
        ),
        "large-negative-scores": (
            "scores around -1e4: a mask of -1e4 hides nothing here",
            {"common": -1e4},
        ),
        "far-negative-scores": (
            "scores around -1e6: a mask of -65504, float16's smallest number, hides nothing here, "
            "and a first maximum of -1e4 is above them all",
            {"common": -1e6},
        ),
        "large-last-key": (
            "a last key of size 1e5: a mask that adds -1e4 lets the tokens before see it",
            {"last": 1e5},
        ),
        "sharp": ("queries of size 30: the pattern is nearly one-hot", {"spread": 30.0}),
        "uneven-scores": (
            "scores of one query around 1e4, of the next around 0: a maximum taken over all rows "
            "leaves 0/0",
            {"common": 1e4, "uneven": True},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": (
            "q, k and v are views of one array, as the model gives them",
            {"layout": "strided"},
        ),
        "long-text": (
            "texts beyond 256 keys, beside short ones: tiles of queries and keys end anywhere",
            {"lengths": (300, 1, 129), "slots": (5, 140, 0), "heads": 1, "head_size": 3},
        ),
        "whole-tiles": (
            "lengths of 32, 64 and 128: the last tile is full, and the one after it empty",
            {"lengths": (64, 32, 128), "slots": (64, 0, 128), "heads": 1, "head_size": 2},
        ),
        "long-prefixes": (
            "prefixes beyond a tile of keys, of unequal lengths",
            {"lengths": (3, 1, 9), "slots": (70, 300, 129), "head_size": 3},
        ),
        "many-heads": ("13 heads: no multiple of 8, and beyond it", {"heads": 13, "head_size": 3}),
        "gpt2-heads": ("12 heads of 64, as GPT-2 has", {"heads": 12, "head_size": 64}),
        "large-heads": ("hs beyond 128, and no multiple of 8", {"heads": 1, "head_size": 130}),
        "many-sequences": (
            "35 sequences, most of one token",
            {"lengths": (1, 1, 4, 1, 2) * 7, "slots": (2, 0, 1, 5, 3, 1, 4) * 5, "head_size": 3},
        ),
        "many-single-tokens": (
            "35 sequences of one token, as in decoding, and what they see is of unequal lengths",
            {"lengths": (1,) * 35, "slots": (2, 9, 0, 130, 1) * 7, "head_size": 3},
        ),
        "equal-scores": (
            "keys and queries of whole numbers: a row's largest score occurs often, in every tile",
            {"lengths": (70, 3), "slots": (40, 3), "heads": 1, "head_size": 3, "rounded": True},
        ),
        "zero-queries": ("queries of 0: all scores are equal", {"spread": 0.0}),
        "zero-prefix": ("keys and values of 0 are seen like any others", {"prefix": 0.0}),
        "same-prefix": (
            "all sequences are given the very same arrays: each has a gradient of its own",
            {"lengths": (4, 2, 3), "slots": (3, 3, 3), "shared": True},
        ),
        "silent": (
            "dz is 0 for a whole sequence and for single tokens, as where nothing is predicted",
            {"lengths": (3, 5, 4), "slots": (2, 2, 1), "silent": True},
        ),
    },
    "cross_entropy": {
        "usual": ("a weighted sum of -log softmax, and its gradient", {}),
        "mean": ("weights 1/M: the mean", {"weights": "mean"}),
        "one-target": ("M = 1", {"M": 1}),
        "large-logits": (
            "logits around 1e4: exp overflows unless the largest is taken off",
            {"common": 1e4},
        ),
        "spread-logits": (
            "logits of size 1e4: a probability that underflows keeps a finite loss",
            {"spread": 1e4},
        ),
        "float32": ("single precision stays single", {"dtype": "float32"}),
        "strided": ("logits that do not lie in one piece", {"layout": "strided"}),
        "large-negative-logits": (
            "logits around -1e4: exp gives 0 everywhere unless the largest is taken off",
            {"common": -1e4},
        ),
        "many-targets": ("M in the hundreds: more than a block of rows", {"M": 301}),
        "past-a-tile": ("M and V beyond a tile's sizes, and no multiples", {"M": 70, "V": 1030}),
        "large-vocabulary": (
            "GPT-2's V, and targets that are its last and its first token",
            {"M": 3, "V": 50257, "ends": True},
        ),
        "some-weights": (
            "weights of exactly 1 and 0, targets at both ends of the vocabulary",
            {"weights": "some", "ends": True},
        ),
        "equal-logits": ("whole numbers: the largest logit occurs twice", {"rounded": True}),
    },
}


def case_of(op: str, name: str) -> Case:
    """The case `name` of the table."""
    given = CASES[op][name][1]
    sizes = {key: size for key, size in given.items() if key not in ("dtype", "layout")}
    return Case(op, sizes, **{key: given[key] for key in given if key not in sizes})
