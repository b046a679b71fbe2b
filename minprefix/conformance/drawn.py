"""Shapes and values that hypothesis draws, and shrinks when one fails."""

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minprefix.conformance.check import Grade, errors_in_single
from minprefix.conformance.implementation import Implementation


def draw_until_one_fails(
    implementation: Implementation,
    grade: Grade,
    strategies: Mapping[str, st.SearchStrategy[Any]],
    n: int,
    once: Callable[[Implementation, dict[str, Any], Grade], None],
) -> None:
    """`once(implementation, drawn, into)` for `n` draws, always the same ones, each with a `Grade`
    of its own. What the last one found goes into `grade`: the smallest that fails, if one does."""
    last, hurry = Grade(explained=grade.explained), implementation.in_a_hurry

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
