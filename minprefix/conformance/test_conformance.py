"""The suite under pytest, one test a check:

    MINPREFIX_IMPL=my_ops pytest --pyargs minprefix.conformance -k attention

What is not implemented is skipped, by name.
"""

import os
from collections.abc import Iterator

import pytest

from minprefix.conformance.isolated import Worker
from minprefix.conformance.report import text
from minprefix.conformance.suite import all_checks
from minprefix.errors import InputError


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    spec = os.environ.get("MINPREFIX_IMPL")
    if not spec:
        pytest.exit("MINPREFIX_IMPL is not set: give it a file or a module to grade", 4)
    with Worker(spec) as started:
        try:
            started.offered()
        except InputError as error:
            pytest.exit(str(error), 4)
        yield started


@pytest.mark.parametrize("check", all_checks())
def test_conformance(check: str, worker: Worker) -> None:
    result = worker.grade(all_checks()[check])
    if result.status == "not graded":
        pytest.skip(f"not graded: {result.not_graded}")
    if result.status == "not implemented":
        pytest.skip(f"not implemented: {', '.join(result.not_implemented)}")
    if result.status == "failed":
        said = f"{result.findings[0].sentence}\n\n{text([result], worker.spec)}"
        pytest.fail(said, pytrace=False)
