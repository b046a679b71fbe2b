"""What the work is spread over: every item once, on as many threads as were asked for."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minprefix.ops import threads


@pytest.fixture(autouse=True)
def as_it_was():
    before = threads.count()
    yield
    threads.limit(before)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_every_item_is_worked_on_once_by_at_most_so_many_threads(n):
    threads.limit(n)
    assert threads.count() == n
    seen, names = [], set()
    barrier = threading.Barrier(n, timeout=120)  # passed only if n of them are at work

    def work(item):
        if item < n:
            barrier.wait()
        seen.append(item)
        names.add(threading.get_ident())

    threads.each(work, range(50))
    assert sorted(seen) == list(range(50))
    assert len(names) == n


def test_products_inside_have_one_thread_and_the_number_comes_back():
    threads.limit(3)
    inside = set()
    threads.each(lambda _: inside.add(threads.count()), range(6))
    assert inside == {1}
    assert threads.count() == 3


@pytest.mark.parametrize("bad", range(4))
def test_an_error_in_any_item_is_raised_and_the_number_comes_back(bad):
    threads.limit(2)

    def work(item):
        if item == bad:
            raise ZeroDivisionError(str(item))

    with pytest.raises(ZeroDivisionError, match=str(bad)):
        threads.each(work, range(4))
    assert threads.count() == 2


@pytest.mark.parametrize("n_items", [1, 2, 3, 8])
def test_the_number_comes_back_however_many_items_there_are(n_items):
    threads.limit(4)
    threads.each(lambda _: None, range(n_items))
    assert threads.count() == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_nobody_begins_another_item(error):
    threads.limit(2)
    main, begun = threading.get_ident(), []

    def work(item):
        if threading.get_ident() == main:
            raise error
        begun.append(item)
        time.sleep(0.2)  # nearly four seconds for all: by then the main thread had its turn

    with pytest.raises(error):
        threads.each(work, range(20))
    at_once = len(begun)
    assert at_once < 19
    time.sleep(0.3)
    assert len(begun) == at_once


def test_there_are_as_many_threads_as_asked_for():
    assert threads._pool()._max_workers >= 64


LATE = """
import threading, time
import numpy as np
from minprefix.ops import numpy_ops, threads
threads.limit(2)
def late():
    time.sleep(0.3)
    print(numpy_ops.gelu(np.ones((2000, 400), np.float32))[0].shape)
threading.Thread(target=late).start()
"""


def test_a_thread_that_outlives_the_main_one_computes_on():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(2000, 400)\n", "")


def test_errstate_holds_in_every_thread():
    threads.limit(2)
    barrier = threading.Barrier(2, timeout=120)
    said = []

    def work(_):
        barrier.wait()
        said.append(np.geterr()["over"])

    with np.errstate(over="raise"):
        threads.each(work, range(2))
    assert said == ["raise"] * 2


@pytest.mark.parametrize("n", [0, -1])
def test_no_threads_are_refused(n):
    with pytest.raises(ValueError, match=f"{n} threads: expected at least 1"):
        threads.limit(n)


def test_blocks_cover_all_rows_and_fit():
    blocks = threads.row_blocks(1000, 4096)
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(1000))
    assert max(b.stop - b.start for b in blocks) * 4096 == threads.CACHE_BYTES
    assert len(threads.row_blocks(3, 10 * threads.CACHE_BYTES)) == 3  # a row at least


IDLE = """
import time
import minprefix, numpy as np
from minprefix.ops import threads
threads.limit(2)
a = np.ones((800, 800), np.float32)
for _ in range(20):
    a @ a
    threads.each(lambda i: np.tanh(a), range(4))
time.sleep(0.01)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before)
"""


def test_nothing_spins_when_idle():
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.01  # of processor time in half a second
