"""The reference suite: run any implementation of the contract through it, and it says what is wrong
and where.

    minprefix check my_ops.py
    MINPREFIX_IMPL=my_ops pytest --pyargs minprefix.conformance

`contract` says what is graded; `cases`, `problems` and `method_problems` with which inputs;
`op_checks`, `by_hand`, `laws`, `model_checks`, `method_checks` and `calls` how; `diagnosis` puts a
difference into words; `zoo` and `bugs` prove that the suite itself has power; `vectors` are the
same cases as files.
"""

from minprefix.conformance.cases import Case, flatten, reference_cache
from minprefix.conformance.check import Check, Finding, Result
from minprefix.conformance.contract import MethodProblem, MicroBatch, ModelProblem, TrainingProblem
from minprefix.conformance.implementation import Implementation, load
from minprefix.conformance.method_problems import method_case, method_problem
from minprefix.conformance.model_checks import right
from minprefix.conformance.model_problems import model_case, model_problem
from minprefix.conformance.op_checks import tensors
from minprefix.conformance.problems import training_case, training_problem
from minprefix.conformance.suite import all_checks, grade, run, select
from minprefix.conformance.whole import whole

__all__ = [
    "Case",
    "Check",
    "Finding",
    "Implementation",
    "MethodProblem",
    "MicroBatch",
    "ModelProblem",
    "Result",
    "TrainingProblem",
    "all_checks",
    "flatten",
    "grade",
    "load",
    "method_case",
    "method_problem",
    "model_case",
    "model_problem",
    "reference_cache",
    "right",
    "run",
    "select",
    "tensors",
    "training_case",
    "training_problem",
    "whole",
]
