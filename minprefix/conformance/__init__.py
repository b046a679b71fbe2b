"""The reference suite: run any implementation of the contract through it, and it says what is wrong
and where.

    minprefix check my_ops.py
    MINPREFIX_IMPL=my_ops pytest --pyargs minprefix.conformance

`contract` says what is graded, `cases` and `model_checks` with which inputs, `diagnosis` how a
difference is put into words, `zoo` and `bugs` what proves that the suite itself has power.
"""

from minprefix.conformance.cases import Case, flatten
from minprefix.conformance.check import Check, Finding, Result
from minprefix.conformance.contract import MicroBatch, ModelProblem, TrainingProblem
from minprefix.conformance.implementation import Implementation, load
from minprefix.conformance.model_checks import (
    model_case,
    model_problem,
    training_case,
    training_problem,
    whole,
)
from minprefix.conformance.op_checks import tensors
from minprefix.conformance.suite import all_checks, grade, run, select

__all__ = [
    "Case",
    "Check",
    "Finding",
    "Implementation",
    "MicroBatch",
    "ModelProblem",
    "Result",
    "TrainingProblem",
    "all_checks",
    "flatten",
    "grade",
    "load",
    "model_case",
    "model_problem",
    "run",
    "select",
    "tensors",
    "training_case",
    "training_problem",
    "whole",
]
