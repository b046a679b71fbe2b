"""The bugs of the zoo, by the part of the code that they are planted in."""

from minprefix.conformance.zoo import Bug

_ALL = [
    Bug(
        "scores-unscaled",
        "maths",
        "ops.reference",
        (("scores = q_b @ keys.swapaxes(1, 2) / hs**0.5", "scores = q_b @ keys.swapaxes(1, 2)"),),
        ("attention", "z"),
        "The pattern is too sharp; losses are a little worse and training is unstable.",
        "q and k have entries of size 1, so q.k has a deviation of sqrt(hs): dividing by it keeps "
        "the softmax out of its flat ends.",
        "a common slip in first implementations",
    ),
    Bug(
        "dprefix-unscaled",
        "maths",
        "ops.reference",
        (
            (
                "dkeys = dscores.swapaxes(1, 2) @ q_b / hs**0.5",
                "dkeys = dscores.swapaxes(1, 2) @ q_b",
            ),
        ),
        ("attention", "dk"),
        "Keys learn sqrt(hs) times too fast, values as they should.",
        "The scale belongs to the scores, so it comes back in both of their factors.",
        "a common slip in first implementations",
    ),
    Bug(
        "positions-ignore-the-prefix",
        "plumbing",
        "model",
        (
            (
                "starts = [prefixes[i].position_offset if prefixes else 0 for i in batch.prefix]",
                "starts = [0 for i in batch.prefix]",
            ),
        ),
        ("model", "blocks.0.resid_pre"),
        "Logits are off by a few tenths; a prefix trained elsewhere scores badly.",
        "Real tokens start at position P in the paper and in PEFT, at 0 in `adapters`.",
        "adapters against PEFT",
    ),
    Bug(
        "decay-in-the-gradient",
        "training",
        "optim",
        (
            (
                "            p = params[name]\n",
                "            p = params[name]\n            g = g + self.weight_decay * p\n",
            ),
            (" + self.weight_decay * p)", ")"),
        ),
        ("training", "step.0.prefix.0.kv"),
        "Decay that hardly depends on its setting.",
        "In AdamW the decay stands apart from the moments; in the gradient it is normalised away.",
        "Adam with L2 in the place of AdamW (Loshchilov & Hutter, 2019)",
    ),
]

BUGS: dict[str, Bug] = {bug.name: bug for bug in _ALL}
