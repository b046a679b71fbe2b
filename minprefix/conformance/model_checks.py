"""The checks of the levels above the ops: a whole model, decoding, training, on the problems of
`problems`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from minprefix.conformance.check import Check, Finding, Grade
from minprefix.conformance.contract import (
    OPTIONAL,
    model_tensors,
    training_tensors,
)
from minprefix.conformance.drawn import draw_until_one_fails
from minprefix.conformance.house import House
from minprefix.conformance.implementation import Broken, Implementation, NotOffered
from minprefix.conformance.model_laws import law_checks
from minprefix.conformance.problems import (
    MODEL_CASES,
    TOLERANCE,
    TRAINING_CASES,
    dimensions,
    expected_decoding,
    expected_model,
    expected_training,
    model_case,
    model_problem,
    training_case,
)
from minprefix.conformance.whole import whole
from minprefix.ops import reference
from minprefix.ops.contract import Array

MODEL_DRAWS = 12


def _grade_tensors(
    implementation: Implementation,
    function: str,
    problem: Any,
    axes: Mapping[str, str],
    want: Mapping[str, Array],
    asked: Callable[[str], bool],
    tolerance: float,
    sizes: Mapping[str, float],
    grade: Grade,
    reproduce: str,
) -> None:
    run = whole(implementation, function)
    try:
        found = run(problem)
    except NotOffered:
        raise
    except Broken as error:
        grade.broken(function, error, reproduce)
        return
    except Exception as error:  # the house's own code, fed by wrong ops
        said = f"{function} over these ops raised {type(error).__name__}: {error}"
        grade.broken(function, Broken("exception", said[:300]), reproduce)
        return
    if not isinstance(found, Mapping):
        said = f"{function} gave a {type(found).__name__}, expected tensors by name"
        grade.broken(function, Broken("missing", said), reproduce)
        return
    for name in sorted(set(found) - set(axes)):
        said = f"{name} is no tensor of {function}: the names are those of its contract"
        grade.findings.append(Finding(function, name, "missing", said, reproducer=reproduce))
    lengths = [len(ids) for ids in getattr(problem, "sequences", ())]
    offsets = [sum(lengths[:b]) for b in range(len(lengths) + 1)]
    kin: dict[str, dict[str, Array]] = {}  # what a tensor may be swapped with: one of its like
    for name in axes:
        if name in want:
            kin.setdefault(name.split(".")[0], {})[name] = want[name]
    given_names = [name for name in axes if name in found]
    if getattr(problem, "need", "") == "all" and not any(map(_of_weights, given_names)):
        grade.not_implemented.append("the gradients of the weights")
    wanted = [name for name in axes if not _of_weights(name)]
    if len([n for n in given_names if not _of_weights(n)]) < len(wanted):
        grade.not_implemented.append(f"some intermediates of {function}")
    for name, letters in axes.items():
        if name not in found or name not in want:
            if asked(name):
                said = f"{name} is missing: {function} is asked for it"
                grade.findings.append(
                    Finding(function, name, "missing", said, reproducer=reproduce)
                )
            continue
        try:
            got = implementation.asnumpy(found[name], name)
        except Broken as error:
            grade.broken(function, error, reproduce)
            continue
        grade.compare(
            function,
            name,
            got,
            want[name],
            tolerance,
            letters,
            sizes,
            kin[name.split(".")[0]],
            offsets,
            None,
            f'{reproduce}\nprint(found["{name}"])',
        )


def _of_weights(name: str) -> bool:
    return name.startswith(("dh.", "dwte", "dwpe", "dln_f", "dlm_head"))


# ---- the checks ---------------------------------------------------------------------------------


def _model_checks() -> Iterator[Check]:
    for case, (why, _) in MODEL_CASES.items():

        def run(implementation: Implementation, grade: Grade, case: str = case) -> None:
            problem = model_case(case)
            offers_weights = implementation.has("run_model") or all(
                map(implementation.has, OPTIONAL)
            )
            if problem.need == "all" and not offers_weights:
                grade.not_implemented.append("the gradients of the weights")
                problem = replace(problem, need="prefix")
            axes = model_tensors(
                problem.config, len(problem.prefixes), len(problem.sequences), problem.need
            )
            _grade_tensors(
                implementation,
                "run_model",
                problem,
                axes,
                expected_model(case),
                _asked,
                TOLERANCE["float32" if case == "float32" else "float64"],
                dimensions(problem),
                grade,
                _reproduce(implementation, "run_model", f"model_case({case!r})"),
            )

        yield Check(f"model/{case}", "model", "model", why, run)


_DRAWN: dict[str, Mapping[str, Array]] = {}  # what is right, by the sizes that were drawn
_drawn_problems = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 1)), min_size=1, max_size=3
).flatmap(
    lambda pairs: st.fixed_dictionaries(
        {
            "lengths": st.just((*(T for T, _ in pairs), 4)),  # the last always has targets
            "loss_from": st.just((*(max(1, T // 2) for T, _ in pairs), 1)),
            "prefix_of": st.just((*(j for _, j in pairs), 0)),
            "slots": st.tuples(st.integers(0, 4), st.integers(1, 4)),
            "reduction": st.sampled_from(["mean", "sum"]),
            "config": st.fixed_dictionaries(
                {
                    "n_layer": st.integers(1, 3),
                    "n_head": st.sampled_from([1, 2, 5]),
                    "n_inner": st.sampled_from([None, 7]),
                    "tie_word_embeddings": st.booleans(),
                    "layer_norm_epsilon": st.sampled_from([1e-5, 1e-2]),
                }
            ),
            "seed": st.integers(0, 99),
        }
    )
)


def _drawn_checks() -> Iterator[Check]:
    def run(implementation: Implementation, grade: Grade) -> None:
        def once(mine: Implementation, drawn: dict[str, Any], into: Grade) -> None:
            sizes = drawn["sizes"]
            problem = model_problem(**sizes)
            n_prefixes, B = len(problem.prefixes), len(problem.sequences)
            key = repr(sizes)
            if key not in _DRAWN:
                _DRAWN[key] = House(reference).run_model(problem)
            _grade_tensors(
                mine,
                "run_model",
                problem,
                model_tensors(problem.config, n_prefixes, B, problem.need),
                _DRAWN[key],
                _asked,
                TOLERANCE["float64"],
                dimensions(problem),
                into,
                _reproduce(mine, "run_model", f"model_problem(**{sizes!r})"),
            )

        draw_until_one_fails(implementation, grade, {"sizes": _drawn_problems}, MODEL_DRAWS, once)

    why = f"{MODEL_DRAWS} models and batches that hypothesis draws, and the smallest that fails"
    yield Check("model/drawn", "model", "model", why, run)


def _asked(name: str) -> bool:
    """What `run_model` must give."""
    return name == "loss" or (name.startswith("prefix.") and name.count(".") == 2)


def _reproduce(implementation: Implementation, function: str, problem: str) -> str:
    maker = problem.split("(")[0]
    return "\n".join(
        (
            f"from minprefix.conformance import load, {maker}, whole",
            f"impl, problem = load({implementation.name!r}), {problem}",
            f'found = whole(impl, "{function}")(problem)',
        )
    )


def _decoding_checks() -> Iterator[Check]:
    for case, why in (
        ("one-sequence", "the cache starts as the prefix, and positions go on from P"),
        ("own-prefixes", "each text has its own prefix in its cache"),
        ("no-prefix", "without a prefix positions start at 0"),
    ):

        def run(implementation: Implementation, grade: Grade, case: str = case) -> None:
            problem = replace(model_case(case), need="prefix")
            _grade_tensors(
                implementation,
                "run_decoding",
                problem,
                {"logits": "N V"},
                expected_decoding(case),
                lambda n: True,
                TOLERANCE["float64"],
                dimensions(problem),
                grade,
                _reproduce(implementation, "run_decoding", f"model_case({case!r})"),
            )

        yield Check(f"decoding/{case}", "model", "decoding", why, run)


# ---- training -----------------------------------------------------------------------------------


def _training_checks() -> Iterator[Check]:
    for case, (why, _) in TRAINING_CASES.items():

        def run(implementation: Implementation, grade: Grade, case: str = case) -> None:
            problem = training_case(case)
            _grade_tensors(
                implementation,
                "run_training",
                problem,
                training_tensors(problem),
                expected_training(case),
                lambda n: ".gradient." not in n,
                TOLERANCE["training"],
                {"micro-batches": 2, "B": 2},
                grade,
                _reproduce(implementation, "run_training", f"training_case({case!r})"),
            )

        yield Check(f"training/{case}", "training", "training", why, run)


def model_checks() -> list[Check]:
    """Cases first, because they say most."""
    return [*_model_checks(), *_decoding_checks(), *law_checks(), *_drawn_checks()]


def training_checks() -> list[Check]:
    return list(_training_checks())
