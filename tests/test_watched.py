"""Arrays that see what an answer computes with them."""

import copy

import numpy as np
import pytest

from minprefix.lessons.exercises.watched import Watched, watched


@pytest.fixture
def seen():
    return []


@pytest.fixture
def array(seen):
    a = np.arange(6.0).reshape(2, 3)
    return watched(a, lambda name, result, new: seen.append((name, result.shape, new)))


def test_its_rule_is_told_each_new_array(array, seen):
    assert np.array_equal(array + 1, np.arange(1.0, 7).reshape(2, 3))
    assert seen == [("add", (2, 3), True)]


def test_a_result_in_an_array_that_is_there_is_not_new(array, seen):
    out = np.empty((2, 3))
    assert np.multiply(array, 2, out=out) is out
    array *= 2
    assert np.array_equal(array, out)
    assert seen == [("multiply", (2, 3), False)] * 2


@pytest.mark.parametrize(
    "product",
    [
        lambda a: a @ a.T,
        lambda a: np.einsum("ij,kj->ik", a, a),
        lambda a: np.dot(a, a.T),
        lambda a: np.tensordot(a, a, (1, 1)),
        lambda a: np.asarray(a) @ a.T,
    ],
)
def test_a_product_is_one_however_it_is_written(array, seen, product):
    assert np.array_equal(product(array), [[5, 14], [14, 50]])
    assert ("matmul", (2, 2), True) in seen


def test_views_copies_and_results_have_the_rule_too(array, seen):
    for made in (array[:1], array.T, array.copy(), copy.deepcopy(array), array + 0, +array[0]):
        assert isinstance(made, Watched)
        seen.clear()
        made + 1
        assert len(seen) == 1


def test_without_a_rule_it_is_an_array_as_any_other():
    a = watched(np.ones(3), None)
    assert (a + a).sum() == 6
    assert np.concatenate([a, a]).shape == (6,)


def test_what_the_rule_raises_reaches_the_caller():
    def rule(name, result, new):
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match="subtract"):
        watched(np.ones(3), rule) - 1
