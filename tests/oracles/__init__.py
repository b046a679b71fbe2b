"""Four unlike ways to compute what the reference suite expects, and how far they agree.

    python -m tests.oracles            # print the table; exit status 1 if a target is missed
    python -m tests.oracles --write    # and keep it as tests/oracles/TABLE.md

    by_torch      PyTorch's autograd in float64: forwards written anew (`op`, `model`, `training`),
                  and transformers' GPT-2 (`transformers_model`, ...)
    by_reference  the derivative of the reference's own forward, three ways: the complex step,
                  central differences, and HIPS autograd run over the source of the reference

The first knows nothing of this project's code, so it confirms forwards and gradients alike. The
other three start from its forward: they confirm that each backward is its derivative.
`agreement` runs them over every case of the suite, `table` holds and prints what came of it.
"""
