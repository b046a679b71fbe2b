"""A check on inputs that hypothesis draws, and shrinks when one fails. The only checks that need
hypothesis."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minprefix.conformance import cases, problems
from minprefix.conformance.cases import Case
from minprefix.conformance.check import Grade, reference_in
from minprefix.conformance.implementation import Implementation, NotOffered
from minprefix.conformance.model_checks import grade_question
from minprefix.conformance.op_checks import grade_case
from minprefix.conformance.problems import drawn_question

Drawn = dict[str, Any]


def _record(**fields: Any) -> st.SearchStrategy[Drawn]:
    """A pair is the least and the largest of some whole numbers, a list all that can be drawn."""

    def strategy(given: Any) -> "st.SearchStrategy[Any]":
        if isinstance(given, tuple):
            return st.integers(*given)
        return st.sampled_from(given) if isinstance(given, list) else given

    return st.fixed_dictionaries({name: strategy(given) for name, given in fields.items()})


def _size(least: int, most: int, *large: int) -> "st.SearchStrategy[int]":
    """Mostly small, and one in four times one of the large ones, which no block divides."""
    small = st.integers(least, most)
    return st.one_of(small, small, small, st.sampled_from(large))


def _sequences(length: Any, number: Any, most: int) -> Any:
    """Up to `most` sequences: a length, and a number that goes with it; ranges, or strategies."""
    pair = (st.integers(*each) if isinstance(each, tuple) else each for each in (length, number))
    return st.lists(st.tuples(*pair), min_size=1, max_size=most)


#: no draw grades mere rounding: what nearly cancels (a layernorm over two columns) or underflows (a
#: softmax far out, which may be all of a small tensor) differs between implementations that are
#: right
DRAWN_SIZES: dict[str, st.SearchStrategy[Drawn]] = {
    "embed": _record(
        N=_size(1, 12, 65, 301),
        C=_size(1, 6, 33, 130),
        V=_size(1, 9, 300, 1030),
        n_positions=_size(1, 9, 300),
        ends=st.booleans(),
    ),
    "layernorm": _record(
        N=_size(1, 6, 65, 130),
        C=_size(3, 16, 33, 130, 513),
        centre=[0.0, 1.0, -20.0],
        spread=[1e-3, 1.0, 1e3],
        eps=[1e-5, 1e-2],
        fresh=st.booleans(),
    ),
    "linear": _record(
        N=_size(1, 6, 33, 70),
        n_in=_size(1, 8, 33, 70),
        n_out=_size(1, 8, 33, 70),
        bias=st.booleans(),
    ),
    "gelu": _record(N=_size(1, 6, 65, 130), F=_size(1, 12, 33, 513), spread=[0.01, 1.0, 10.0]),
    "attention": _sequences(_size(1, 8, 17, 33, 70), _size(0, 6, 17, 40, 70), most=4).flatmap(
        lambda pairs: _record(
            lengths=st.just(tuple(T for T, _ in pairs)),
            slots=st.just(tuple(P for _, P in pairs)),
            heads=_size(1, 4, 9),
            head_size=_size(1, 9, 17, 33),
            spread=[0.1, 1.0, 2.0],
            rounded=st.booleans(),
            silent=st.booleans(),
        )
    ),
    "cross_entropy": _record(
        M=_size(1, 8, 65, 130),
        V=_size(2, 16, 130, 1030),
        spread=[0.1, 1.0, 2.0],
        weights=["random", "mean", "some"],
        rounded=st.booleans(),
        ends=st.booleans(),
    ),
}

#: arguments of `model_problem`
DRAWN_PROBLEMS: st.SearchStrategy[Drawn] = _sequences((1, 6), (0, 1), most=3).flatmap(
    lambda pairs: _record(
        lengths=st.just((*(T for T, _ in pairs), 4)),  # the last always has targets
        loss_from=st.just((*(max(1, T // 2) for T, _ in pairs), 1)),
        prefix_of=st.just((*(j for _, j in pairs), 0)),
        slots=st.tuples(st.integers(0, 4), st.integers(1, 4)),
        position_offsets=st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))),
        reduction=["mean", "sum"],
        need=["prefix", "all"],
        config=_record(
            n_layer=(1, 3),
            n_head=[1, 2, 5],
            n_inner=[None, 7],
            tie_word_embeddings=st.booleans(),
            layer_norm_epsilon=[1e-5, 1e-2],
        ),
        seed=(0, 99),
    )
)

#: arguments of `training_problem`
DRAWN_TRAININGS: st.SearchStrategy[Drawn] = _record(
    kinds=[("flat",), ("mlp",), ("flat", "mlp"), ("mlp", "flat", "flat")],
    n_steps=(2, 4),
    micro_batches=(1, 2),
    rotate=st.booleans(),
    config=_record(
        n_layer=(1, 2), tie_word_embeddings=st.booleans(), layer_norm_epsilon=[1e-5, 1e-2]
    ),
    lr=[0.01, 0.1],
    warmup=(0, 1),
    beta1=[0.5, 0.9],
    beta2=[0.9, 0.999],
    eps=[1e-8, 1e-3],
    weight_decay=[0.0, 0.1],
    clip=[None, 0.2, 1e6],
    seed=(0, 99),
)


def grade_op(op: str, implementation: Implementation, grade: Grade) -> None:
    layouts = st.sampled_from(["contiguous", "strided", "fortran"])
    strategies = {"sizes": DRAWN_SIZES[op], "seed": st.integers(0, 2**16), "layout": layouts}

    def once(mine: Implementation, drawn: Drawn, into: Grade) -> None:
        grade_case(Case(op, **drawn), mine, into)

    _until_one_fails(implementation, grade, strategies, cases.DRAWS, once)


def grade_whole(function: str, implementation: Implementation, grade: Grade) -> None:
    def once(mine: Implementation, drawn: Drawn, into: Grade) -> None:
        try:
            grade_question(drawn_question(function, drawn["sizes"]), mine, into)
        except NotOffered as error:  # of this draw: a head of its own, say
            grade.not_implemented.append(str(error))
        if mine is implementation:  # there may be no errors in the last draw
            grade.errors |= into.errors

    sizes = DRAWN_TRAININGS if function == "run_training" else DRAWN_PROBLEMS
    _until_one_fails(implementation, grade, {"sizes": sizes}, problems.DRAWS, once)


def _until_one_fails(
    implementation: Implementation,
    grade: Grade,
    strategies: dict[str, st.SearchStrategy[Any]],
    n: int,
    once: Callable[[Implementation, Drawn, Grade], None],
) -> None:
    """`once(implementation, drawn, into)` for `n` draws, always the same ones, each with a `Grade`
    of its own. `grade` gets what the last one found: the smallest that fails, if one does. When it
    takes long, there are fewer draws, and a failure is shrunk less."""
    hurry, draws = implementation.in_a_hurry, _Draws(implementation, grade, once)

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
        draws.grade(drawn)

    try:
        holds()
    except _Fails:  # hypothesis ends on the smallest
        grade.findings += draws.last.findings
    grade.errors |= draws.last.errors
    grade.found |= draws.last.found
    grade.not_implemented += draws.last.not_implemented
    if draws.left_out and not grade.findings:
        each = draws.seconds / max(1, draws.graded)
        said = f"{draws.left_out} of {draws.left_out + draws.graded} draws"
        grade.not_graded = f"{said} ({each:.2g} s each)"


class _Fails(Exception):
    pass


class _Draws:
    """Grades one draw after the other, and once the time is up, no new one. `last`: what the last
    one gave."""

    def __init__(
        self,
        implementation: Implementation,
        grade: Grade,
        once: Callable[[Implementation, Drawn, Grade], None],
    ) -> None:
        self._mine, self._grade, self._once = implementation, grade, once
        self._failed: dict[str, Grade] = {}
        self.last, self.graded, self.left_out, self.seconds = grade.another(), 0, 0, 0.0

    def grade(self, drawn: Drawn) -> None:
        """Raises _Fails."""
        clock, key = self._mine.clock, repr(drawn)
        if self.graded and clock.hurries():
            if key not in self._failed:
                self.left_out += 1
                return
            self.last = self._failed[key]
            raise _Fails
        self.last = last = self._grade.another()
        if self._grade.reference_in is not None:  # of this draw, not of all
            last.reference_in = cache(
                partial(reference_in, lambda mine, into: self._once(mine, drawn, into))
            )
        self._once(self._mine, drawn, last)
        self.graded, self.seconds = self.graded + 1, clock.elapsed()
        if last.findings:
            self._failed[key] = last
            raise _Fails
