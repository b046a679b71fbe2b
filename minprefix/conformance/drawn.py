"""A check on inputs that hypothesis draws, and shrinks when one fails. The only checks that need
hypothesis."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minprefix.conformance import cases, problems
from minprefix.conformance.cases import Case
from minprefix.conformance.check import Grade, errors_in_single
from minprefix.conformance.implementation import Implementation
from minprefix.conformance.model_checks import grade_question
from minprefix.conformance.op_checks import grade_case
from minprefix.conformance.problems import drawn_question

Drawn = dict[str, Any]


def _record(**fields: "st.SearchStrategy[Any]") -> st.SearchStrategy[Drawn]:
    return st.fixed_dictionaries(fields)


def _lengths_and(first: int, last: int, most: int, longest: int) -> Any:
    """One to `most` pairs: a sequence's length, and a number from `first` to `last`."""
    pair = st.tuples(st.integers(1, longest), st.integers(first, last))
    return st.lists(pair, min_size=1, max_size=most)


#: no draw grades mere rounding: what nearly cancels (a layernorm over two columns) or underflows (a
#: softmax far out, which may be all of a small tensor) differs between implementations that are
#: right
DRAWN_SIZES: dict[str, st.SearchStrategy[Drawn]] = {
    "embed": _record(
        N=st.integers(1, 12),
        C=st.integers(1, 6),
        V=st.integers(1, 9),
        n_positions=st.integers(1, 9),
    ),
    "layernorm": _record(
        N=st.integers(1, 6),
        C=st.integers(3, 16),
        centre=st.sampled_from([0.0, 1.0, -20.0]),
        spread=st.sampled_from([1e-3, 1.0, 1e3]),
        eps=st.sampled_from([1e-5, 1e-2]),
    ),
    "linear": _record(
        N=st.integers(1, 6), n_in=st.integers(1, 8), n_out=st.integers(1, 8), bias=st.booleans()
    ),
    "gelu": _record(
        N=st.integers(1, 6), F=st.integers(1, 12), spread=st.sampled_from([0.01, 1.0, 10.0])
    ),
    "attention": _lengths_and(0, 6, most=4, longest=8).flatmap(
        lambda pairs: _record(
            lengths=st.just(tuple(T for T, _ in pairs)),
            slots=st.just(tuple(P for _, P in pairs)),
            heads=st.integers(1, 4),
            head_size=st.integers(1, 9),
            spread=st.sampled_from([0.1, 1.0, 2.0]),
        )
    ),
    "cross_entropy": _record(
        M=st.integers(1, 8),
        V=st.integers(2, 16),
        spread=st.sampled_from([0.1, 1.0, 2.0]),
        weights=st.sampled_from(["random", "mean"]),
    ),
}

#: arguments of `model_problem`
DRAWN_PROBLEMS: st.SearchStrategy[Drawn] = _lengths_and(0, 1, most=3, longest=6).flatmap(
    lambda pairs: _record(
        lengths=st.just((*(T for T, _ in pairs), 4)),  # the last always has targets
        loss_from=st.just((*(max(1, T // 2) for T, _ in pairs), 1)),
        prefix_of=st.just((*(j for _, j in pairs), 0)),
        slots=st.tuples(st.integers(0, 4), st.integers(1, 4)),
        reduction=st.sampled_from(["mean", "sum"]),
        config=_record(
            n_layer=st.integers(1, 3),
            n_head=st.sampled_from([1, 2, 5]),
            n_inner=st.sampled_from([None, 7]),
            tie_word_embeddings=st.booleans(),
            layer_norm_epsilon=st.sampled_from([1e-5, 1e-2]),
        ),
        seed=st.integers(0, 99),
    )
)


def grade_op(op: str, implementation: Implementation, grade: Grade) -> None:
    layouts = st.sampled_from(["contiguous", "strided", "fortran"])
    strategies = {"sizes": DRAWN_SIZES[op], "seed": st.integers(0, 2**16), "layout": layouts}

    def once(mine: Implementation, drawn: Drawn, into: Grade) -> None:
        grade_case(mine, Case(op, **drawn), into)

    _until_one_fails(implementation, grade, strategies, cases.DRAWS, once)


def grade_model(implementation: Implementation, grade: Grade) -> None:
    def once(mine: Implementation, drawn: Drawn, into: Grade) -> None:
        grade_question(drawn_question(drawn["sizes"]), mine, into)

    strategies = {"sizes": DRAWN_PROBLEMS}
    _until_one_fails(implementation, grade, strategies, problems.DRAWS, once)


def _until_one_fails(
    implementation: Implementation,
    grade: Grade,
    strategies: dict[str, st.SearchStrategy[Any]],
    n: int,
    once: Callable[[Implementation, Drawn, Grade], None],
) -> None:
    """`once(implementation, drawn, into)` for `n` draws, always the same ones, each with a `Grade`
    of its own. `grade` gets what the last one found: the smallest that fails, if one does."""
    last, hurry = Grade(explained=grade.explained), implementation.in_a_hurry

    # hypothesis takes its draws from the text of `holds`: another text draws other cases
    @settings(
        max_examples=max(1, n // 4) if hurry else n,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate] if hurry else [Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries(dict(strategies)))
    def holds(drawn: dict[str, Any]) -> None:
        nonlocal last
        last = Grade(explained=grade.explained)
        if grade.in_single is not None:  # of this draw, not of all
            last.in_single = lambda: errors_in_single(
                lambda single, into: once(single, drawn, into)
            )
        once(implementation, drawn, last)
        if last.findings:
            raise _Fails

    try:
        holds()
    except _Fails:  # hypothesis ends on the smallest
        grade.findings += last.findings
    grade.errors |= last.errors
    grade.found |= last.found
    grade.not_implemented += last.not_implemented


class _Fails(Exception):
    pass
