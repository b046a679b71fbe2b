"""Writing that never leaves half a file, and reading that says where a file is wrong."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minprefix import InputError
from minprefix.data.pairs import read_pairs
from minprefix.data.requests import read_requests
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
from tests.reliability import saves
from tests.reliability.calls import CALLS, struck

fcntl = writing.fcntl
posix = pytest.mark.skipif(os.name != "posix", reason="no locks on folders")


@pytest.fixture
def old(tmp_path):
    """A file of an earlier save, in a folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "state").write_bytes(b"the last good state")
    return folder / "state"


@pytest.fixture
def in_memory(tmp_path):
    """A folder of a file system that flushes at once, where there is one."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ---- writing ----


def test_write_bytes_replaces_the_file_and_leaves_nothing_beside_it(old):
    writing.write_bytes(old, b"new")
    assert content(old.parent) == {"state": b"new"}


def test_write_bytes_makes_the_folders_above(tmp_path):
    writing.write_bytes(tmp_path / "a" / "b" / "c", b"new")
    assert content(tmp_path / "a" / "b") == {"c": b"new"}


def test_the_data_reaches_the_disk_before_it_takes_the_name(old, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (steps.append(name), real(*a))[1]
        )
    writing.write_bytes(old, b"new")
    assert steps[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_the_old_file_whole(old, monkeypatch, call, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    sentence = f"cannot write .*state: {os.strerror(code)}; the last one saved is intact; make room"
    with pytest.raises(InputError, match=sentence):
        writing.write_bytes(old, b"new" * 1000)
    assert content(old.parent) == {"state": b"the last good state"}


def test_where_nothing_was_saved_before_nothing_is_said_to_be_intact(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"first: No space left on device; make room") as error:
        writing.write_bytes(tmp_path / "first", b"new")
    assert "intact" not in str(error.value)
    assert content(tmp_path) == {}


def test_ctrl_c_while_writing_leaves_the_old_file_and_nothing_beside_it(old, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writing.write_bytes(old, b"new")
    assert content(old.parent) == {"state": b"the last good state"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from minprefix import InputError
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.data.pairs import read_pairs
from minprefix.data.requests import read_requests
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel answers EFBIG instead
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
for write in (
    lambda: writing.write_bytes(path, b"x" * 200_000),
    lambda: writing.write_json(path, {"x": "x" * 200_000}),
    lambda: write_tensors(path, {"x": np.zeros(50_000)}, {}),
):
    try:
        write()
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_write_that_the_kernel_cuts_short_leaves_the_old_file_whole(old):
    command = [sys.executable, "-c", FULL_DISK, str(old)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    want = f"cannot write {old}: File too large; the last one saved is intact; make room"
    assert len(said) == 3
    assert all(line.startswith(want) for line in said)
    assert content(old.parent) == {"state": b"the last good state"}


KILLED = """
import os, signal, sys
from pathlib import Path
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
name, after = sys.argv[2], sys.argv[3] == "after"
real = getattr(os, name)
def kill(*a):
    if after:
        real(*a)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, name, kill)
writing.write_bytes(Path(sys.argv[1]), b"new" * 1000)
"""


@pytest.mark.parametrize(
    ("call", "when", "want"),
    [
        ("fsync", "before", b"the last good state"),
        ("replace", "before", b"the last good state"),
        ("replace", "after", b"new" * 1000),
    ],
)
def test_kill_9_leaves_the_old_file_or_the_new_one(old, call, when, want):
    done = subprocess.run([sys.executable, "-c", KILLED, str(old), call, when], check=False)
    assert done.returncode == -9
    assert old.read_bytes() == want
    writing.write_bytes(old, b"the run goes on")
    assert old.read_bytes() == b"the run goes on"


def test_a_reader_never_sees_half_a_file(old):
    versions = [bytes([i]) * 100_000 for i in range(4)]
    writing.write_bytes(old, versions[0])
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(old.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for data in versions * 10:
        writing.write_bytes(old, data)
    stop.set()
    reader.join()
    assert seen
    assert seen <= set(versions)


@pytest.mark.parametrize("below", ["state/file", "state/deep/file"])
def test_a_folder_that_is_a_file_is_a_sentence(old, below):
    with pytest.raises(InputError, match=r"cannot write .*file: .*choose another folder"):
        writing.write_bytes(old.parent / below, b"new")
    assert content(old.parent) == {"state": b"the last good state"}


def test_a_file_that_is_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*taken: Is a directory"):
        writing.write_bytes(tmp_path / "taken", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---- one writer to a file, and to a folder ----


def python(program, *args, **how):
    """A process that runs `program`."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **how,
    )


def in_thread(work):
    """What `work` returned or raised in another thread."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        return future.exception() or future.result()


HOLD = """
import sys
from pathlib import Path
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
with saving.only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""
IN_USE = "another process is writing into {}: wait for it to end, or choose another folder"


@posix
def test_a_folder_that_another_process_writes_into_is_refused_until_it_is_killed(old):
    other = python(HOLD, old.parent)
    assert other.stdout.readline() == "held\n"
    for write in (
        lambda: saving.write_together(old.parent, {"state": b"new"}, ["state"]),
        lambda: saving.new_folder(old.parent, ["state"], force=True),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(IN_USE.format(old.parent))}$"):
            write()
    assert content(old.parent) == {"state": b"the last good state"}
    other.kill()
    other.communicate()
    saving.write_together(old.parent, {"state": b"new"}, ["state"])
    assert content(old.parent) == {"state": b"new"}


@posix
def test_a_folder_that_another_thread_writes_into_is_refused_and_the_same_thread_is_not(old):
    def take():
        with saving.only_writer(old.parent):
            return "mine"

    for _ in range(2):
        with saving.only_writer(old.parent):
            assert take() == "mine"
            with pytest.raises(ValueError, match="a failure"), saving.only_writer(old.parent):
                raise ValueError("a failure")
            assert str(in_thread(take)) == IN_USE.format(old.parent)  # still held
        assert in_thread(take) == "mine"


FORK = """
import os, sys
from pathlib import Path
from minprefix import InputError
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.data.pairs import read_pairs
from minprefix.data.requests import read_requests
folder = Path(sys.argv[1])
def take():
    try:
        with saving.only_writer(folder):
            return "taken"
    except InputError:
        return "refused"
with saving.only_writer(folder):
    if not os.fork():
        print(take(), flush=True)
        sys.stdin.readline()
        print(take(), flush=True)
        os._exit(0)
    os.read(int(sys.argv[2]), 1)
print(take(), flush=True)  # while the child lives, which has what was open when it was forked
os.wait()
"""


@posix
def test_a_child_that_was_forked_holds_nothing_and_keeps_nothing(tmp_path):
    read, write = os.pipe()
    process = python(FORK, tmp_path, read, pass_fds=[read])
    assert process.stdout.readline() == "refused\n"
    os.write(write, b".")
    assert process.stdout.readline() == "taken\n"
    assert process.communicate("\n")[0] == "taken\n"
    os.close(read)
    os.close(write)


@posix
def test_a_folder_to_hold_that_is_not_there_is_a_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=r"cannot write into .*none: No such file"),
        saving.only_writer(tmp_path / "none"),
    ):
        pass


@posix
def test_a_file_that_another_thread_is_writing_is_refused_and_stays_its_own(old, monkeypatch):
    fsync, said = os.fsync, []

    def write_in_between(handle):
        monkeypatch.setattr(os, "fsync", fsync)
        said.append(in_thread(lambda: writing.write_bytes(old, b"the other's")))
        said.append(in_thread(lambda: writing.write_bytes(old.with_name("another"), b"x")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", write_in_between)
    writing.write_bytes(old, b"mine" * 1000)
    assert re.match("another process is writing .*state: wait", str(said[0]))
    assert said[1] is None
    assert content(old.parent) == {"state": b"mine" * 1000, "another": b"x"}


@posix
def test_a_file_that_took_its_name_between_opening_and_locking_is_not_written_over(
    old, monkeypatch
):
    flock = fcntl.flock

    def write_first(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        writing.write_bytes(old, b"the other's")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", write_first)
    with pytest.raises(InputError, match=r"another process is writing .*state"):
        writing.write_bytes(old, b"mine")
    assert content(old.parent) == {"state": b"the other's"}


@posix
def test_a_link_in_place_of_the_temporary_file_is_not_followed(old, tmp_path):
    writing.temporary(old).symlink_to(tmp_path / "outside")
    with pytest.raises(
        InputError, match=r"cannot write .*state: Too many levels of symbolic links"
    ):
        writing.write_bytes(old, b"new")
    assert not (tmp_path / "outside").exists()
    assert old.read_bytes() == b"the last good state"


WRITE_IN_A_LOOP = """
import sys
from pathlib import Path
from minprefix import InputError
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.data.pairs import read_pairs
from minprefix.data.requests import read_requests
path, me, told, wrote = Path(sys.argv[1]), sys.argv[2].encode(), 0, 0
while wrote < 150:
    try:
        writing.write_bytes(path, (me + b"%d " % wrote) * 20_000)
        wrote += 1
    except InputError as error:
        assert "another process is writing" in str(error), error
        told += 1
print(wrote, told)
"""


@posix
def test_of_two_processes_that_write_one_file_each_writes_it_whole_or_is_told(in_memory):
    path = in_memory / "run" / "file"
    both = [python(WRITE_IN_A_LOOP, path, me) for me in "ab"]
    whole = 0
    while any(p.poll() is None for p in both):
        if path.exists():
            data = path.read_bytes()
            assert data == data[: data.index(b" ") + 1] * 20_000
            whole += 1
    assert [p.communicate()[0].split()[0] for p in both] == ["150", "150"]
    assert whole
    assert [p.name for p in path.parent.iterdir()] == ["file"]


# ---- several files as one ----


def save(folder, new):
    saving.write_together(folder, new, saves.NAMES)


@pytest.mark.parametrize(("before", "after"), saves.SAVES)
def test_files_written_together_replace_those_before_and_no_others(tmp_path, before, after):
    saves.start(tmp_path / "run", before)
    save(tmp_path / "run", after)
    assert saves.content(tmp_path / "run") == after | saves.OTHERS


def test_files_written_together_make_the_folders_above(tmp_path):
    save(tmp_path / "a" / "b", saves.NEW)
    assert saves.content(tmp_path / "a") == {"b": b""} | {f"b/{n}": d for n, d in saves.NEW.items()}


@posix
def test_a_save_killed_at_any_call_leaves_the_old_files_or_the_new_ones_and_nothing_else(in_memory):
    command = [sys.executable, "-m", "tests.reliability.saves", str(in_memory), "few"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert min(json.loads(done.stdout).values()) > 50


class Refusal:
    """What a system may answer, as `struck` wants it."""

    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


@posix
def test_a_save_refused_right_after_its_decision_and_killed_while_it_is_forgotten_leaves_the_old(
    tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    waiting = folder / saving.SAVING
    saves.start(folder, saves.OLD)

    def cut_short(path, ignore_errors):
        (path / "config").unlink()
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", cut_short)
    refuse = Refusal(OSError(errno.EIO, "Input/output error"))
    with (
        contextlib.suppress(SystemExit),
        struck(0, "before", refuse, lambda *call: call == ("fsync", str(waiting))),
    ):
        save(folder, saves.NEW)
    assert not (waiting / "config").exists()
    monkeypatch.undo()
    saving.finish_save(folder, saves.NAMES)
    assert saves.content(folder) == saves.OLD | saves.OTHERS


@posix
@pytest.mark.parametrize(
    ("error", "on"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_save_refused_at_any_call_leaves_the_old_files_or_the_new_ones(in_memory, error, on):
    folder, act = in_memory / "run", Refusal(error)
    needs_room = {"open", "mkdir", "replace", "fsync"} if on else set(CALLS)
    found = []
    for when in saves.WHEN:
        for n in itertools.count():
            saves.start(folder, saves.OLD)
            said = None
            with struck(n, when, act, lambda call, _: call in needs_room, on) as seen:
                try:
                    save(folder, saves.NEW)
                except (InputError, KeyboardInterrupt) as e:
                    said = e
            if len(seen) <= n:
                break
            if isinstance(said, InputError):
                assert re.search(r"make room|choose another folder", str(said)), said
            saving.finish_save(folder, saves.NAMES)
            left = saves.content(folder)
            assert left in (saves.OLD | saves.OTHERS, saves.NEW | saves.OTHERS), (when, n, said)
            assert said or left == saves.NEW | saves.OTHERS, (when, n)
            found.append(left == saves.NEW | saves.OTHERS)
            save(folder, saves.NEW)
            assert saves.content(folder) == saves.NEW | saves.OTHERS
    assert set(found) == {True, False}


def test_where_no_files_were_saved_before_nothing_is_said_to_be_intact(tmp_path):
    refuse = Refusal(OSError(errno.ENOSPC, "No space left on device"))
    for n in range(3, 12):
        with struck(n, "before", refuse), pytest.raises(InputError) as said:
            save(tmp_path / str(n), saves.NEW)
        assert re.search("cannot write .*: No space left on device; make room", str(said.value))
        assert saves.content(tmp_path / str(n)) == {}


def cut_short(folder, decided):
    """A folder where a save was killed right before or right after it was decided."""
    saves.start(folder, saves.OLD)
    when = "after" if decided else "before"
    decision = "replace", str(folder / saving.SAVING / saving.COMPLETE)
    with (
        contextlib.suppress(SystemExit),
        pytest.MonkeyPatch.context() as patched,
        struck(0, when, Refusal(SystemExit()), lambda *call: call == decision),
    ):
        patched.setattr(saving, "_forget", lambda waiting: None)  # as the killed one does
        save(folder, saves.NEW)
    assert (folder / saving.SAVING / "config").exists()
    assert (folder / saving.SAVING / saving.COMPLETE).exists() == decided


def no_leave(call, path):
    return call in ("mkdir", "replace", "unlink", "rmdir")


@posix
def test_who_may_not_write_reads_the_old_files_beside_a_save_that_was_not_decided(tmp_path):
    cut_short(tmp_path / "run", decided=False)
    with struck(0, "before", Refusal(PermissionError(13, "Permission denied")), no_leave, on=True):
        saving.finish_save(tmp_path / "run", saves.NAMES)
        read = (tmp_path / "run" / "config").read_bytes
        assert saving.read_together(tmp_path / "run", saves.NAMES, read) == saves.OLD["config"]


@posix
def test_who_may_not_write_is_told_of_a_save_that_was_decided(tmp_path):
    cut_short(tmp_path / "run", decided=True)
    sentence = "cut short and cannot be finished .Permission denied.: .* as a user who may write"
    with (
        struck(0, "before", Refusal(PermissionError(13, "Permission denied")), no_leave, on=True),
        pytest.raises(InputError, match=sentence),
    ):
        saving.finish_save(tmp_path / "run", saves.NAMES)
    saving.finish_save(tmp_path / "run", saves.NAMES)
    assert saves.content(tmp_path / "run") == saves.NEW | saves.OTHERS


@posix
def test_a_save_under_way_is_not_forgotten_by_one_who_reads(tmp_path):
    cut_short(tmp_path / "run", decided=False)
    before = saves.content(tmp_path / "run")
    with saving.only_writer(tmp_path / "run"):
        assert in_thread(lambda: saving.finish_save(tmp_path / "run", saves.NAMES)) is None
        assert saves.content(tmp_path / "run") == before


@posix
def test_a_save_that_another_completes_is_waited_for(tmp_path):
    cut_short(tmp_path / "run", decided=True)
    read = (tmp_path / "run" / "config").read_bytes
    with ThreadPoolExecutor(1) as pool:
        with saving.only_writer(tmp_path / "run"):
            found = pool.submit(saving.read_together, tmp_path / "run", saves.NAMES, read)
            with pytest.raises(TimeoutError):
                found.result(timeout=0.3)
        assert found.result() == saves.NEW["config"]


def test_one_who_reads_is_told_when_there_is_no_end_to_the_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE", 0.1)
    saves.start(tmp_path, {})
    with pytest.raises(InputError, match=re.escape(IN_USE.format(tmp_path))):
        saving.read_together(tmp_path, saves.NAMES, lambda: save(tmp_path, saves.NEW))


def test_files_that_are_taking_their_places_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE", 0.1)
    cut_short(tmp_path / "run", decided=True)
    # it was decided right after the reader had looked for a save to finish
    monkeypatch.setattr(saving, "finish_save", lambda folder, names: None)
    with pytest.raises(InputError, match="another process is writing"):
        saving.read_together(tmp_path / "run", saves.NAMES, lambda: "files of two saves")


def test_what_is_wrong_with_the_files_is_said_to_the_one_who_reads(tmp_path):
    saves.start(tmp_path, saves.OLD)
    with pytest.raises(InputError, match="cannot read it"):
        saving.read_together(tmp_path, saves.NAMES, Refusal(InputError("cannot read it")))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_place_of_the_folder_of_a_save_is_a_sentence(tmp_path, kind):
    saves.start(tmp_path / "run", saves.OLD)
    (tmp_path / "elsewhere").mkdir()
    waiting = tmp_path / "run" / saving.SAVING
    if kind == "file":
        waiting.write_bytes(b"")
    else:
        waiting.symlink_to(tmp_path / "elsewhere")
    for work in (
        lambda: save(tmp_path / "run", saves.NEW),
        lambda: saving.finish_save(tmp_path / "run", saves.NAMES),
    ):
        with pytest.raises(InputError, match=rf"{waiting} is no folder, .*: remove it"):
            work()
    assert (tmp_path / "run" / "config").read_bytes() == saves.OLD["config"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("listed", ['["../outside"]', '["config", "notes.txt"]', "[1]", "{}", "["])
def test_a_list_that_no_save_wrote_moves_nothing(tmp_path, listed):
    cut_short(tmp_path / "run", decided=True)
    (tmp_path / "run" / saving.SAVING / saving.COMPLETE).write_text(listed)
    (tmp_path / "run" / saving.SAVING / "notes.txt").write_text("not mine")
    before = saves.content(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "run" / saving.SAVING))):
        saving.finish_save(tmp_path / "run", saves.NAMES)
    assert saves.content(tmp_path) == before


def test_force_forgets_a_save_that_was_cut_short(tmp_path):
    cut_short(tmp_path / "run", decided=True)
    with pytest.raises(InputError, match=r"already holds a run \(\.saving, config\)"):
        saving.new_folder(tmp_path / "run", [saving.SAVING, "config"], force=False)
    saving.new_folder(tmp_path / "run", [saving.SAVING, *saves.NAMES], force=True)
    assert saves.content(tmp_path / "run") == saves.OTHERS


def test_a_save_over_one_that_was_cut_short_completes_that_first(tmp_path):
    folder = tmp_path / "run"
    cut_short(folder, decided=True)
    refuse = Refusal(OSError(errno.ENOSPC, "No space left on device"))
    first = "open", str(folder / saving.SAVING / "config")
    with (
        struck(0, "before", refuse, lambda *call: call == first),
        pytest.raises(InputError, match="No space left on device"),
    ):
        save(folder, saves.OLD)
    assert saves.content(folder) == saves.NEW | saves.OTHERS


def test_a_kill_while_force_forgets_a_save_makes_no_mixture_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    cut_short(folder, decided=True)

    def killed(path, ignore_errors=False):
        (path / "config").unlink()
        raise SystemExit

    monkeypatch.setattr(shutil, "rmtree", killed)
    with contextlib.suppress(SystemExit):
        saving.new_folder(folder, [saving.SAVING, *saves.NAMES], force=True)
    monkeypatch.undo()
    saving.finish_save(folder, saves.NAMES)
    assert saves.content(folder) == saves.OLD | saves.OTHERS


SAVE_IN_A_LOOP = """
import sys
from pathlib import Path
from minprefix import InputError
from minprefix.storage import reading, saving, writing
from minprefix.storage.tensors import map_tensors, write_tensors
from minprefix.data.pairs import read_pairs
from minprefix.data.requests import read_requests
from tests.reliability import saves
saved = told = 0
while saved < 150:
    word = b"%s %d, " % (sys.argv[2].encode(), saved)
    tensor = "tensor" if saved % 2 else "own"
    new = {"config": word, "about": word * 500, tensor: word * 3000}
    try:
        saving.write_together(Path(sys.argv[1]), new, saves.NAMES)
        saved += 1
    except InputError as error:
        assert "another process is writing" in str(error), error
        told += 1
print(saved, told)
"""


def one_save(folder):
    """The word that all files of a save hold; AssertionError if they are of two saves."""
    found = {n: (folder / n).read_bytes() for n in saves.NAMES if (folder / n).exists()}
    if not found:
        return None
    words = {data.split(b", ")[0] for data in found.values()}
    if len(words) > 1 or len(found) != 3:
        raise InputError(f"{sorted(found)} are of {words}")
    return words.pop()


@posix
def test_while_two_processes_save_into_a_folder_a_reader_sees_one_save_or_the_other(in_memory):
    folder = in_memory / "run"
    folder.mkdir()
    both = [python(SAVE_IN_A_LOOP, folder, me) for me in "ab"]
    seen = set()
    while any(p.poll() is None for p in both):
        seen.add(saving.read_together(folder, saves.NAMES, lambda: one_save(folder)))
    assert [p.communicate()[0].split()[0] for p in both] == ["150", "150"]
    assert len(seen) > 2
    assert one_save(folder)
    assert saving.SAVING not in saves.content(folder)


@posix
def test_while_two_threads_save_into_a_folder_a_reader_sees_one_save_or_the_other(in_memory):
    folder = in_memory / "run"
    folder.mkdir()

    def keep_saving(me):
        saved = 0
        for i in range(60):
            with contextlib.suppress(InputError):
                word = f"{me} {i}, ".encode()
                save(folder, {"config": word, "about": word * 50, "own": word * 300})
                saved += 1
        return saved

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(keep_saving, me) for me in "ab"]
        while not all(f.done() for f in both):
            saving.read_together(folder, saves.NAMES, lambda: one_save(folder))
        assert all(f.result() for f in both)
    assert one_save(folder)
    assert saving.SAVING not in saves.content(folder)


def test_text_and_json_are_utf_8_with_their_own_letters(tmp_path):
    writing.write_text(tmp_path / "text", "Zoë\n")
    writing.write_json(tmp_path / "json", {"name": "Zoë £20", "n": None})
    assert (tmp_path / "text").read_bytes() == "Zoë\n".encode()
    assert "Zoë £20" in (tmp_path / "json").read_text(encoding="utf-8")
    assert reading.read_json(tmp_path / "json", "it") == {"name": "Zoë £20", "n": None}


# ---- reading ----


@pytest.mark.parametrize(
    ("data", "line", "byte"),
    [
        (b"\xff", 1, "ff"),
        (b"one\ntwo \xe9t\xe9\nthree", 2, "e9"),
        (b"one\r\ntwo\r\n\xc3", 3, "c3"),
        ("£\n£\n£\n".encode() + b"\n\x80\n\n\n", 5, "80"),
        (b"\xef\xbb\xbfone\ntwo\xfe\n", 2, "fe"),
        (b"\xef\xbb\xbf\n\xfe", 2, "fe"),  # a mark at the start does not shift the count
        (b"x" * 100_000 + b"\n" * 100 + b"\xa0", 101, "a0"),
    ],
)
def test_a_byte_that_is_not_utf_8_is_named_with_its_file_and_line(tmp_path, data, line, byte):
    path = tmp_path / "data.csv"
    path.write_bytes(data)
    sentence = rf"data\.csv, line {line}: byte 0x{byte} is not UTF-8: save the table as UTF-8"
    with pytest.raises(InputError, match=sentence):
        reading.read_text(path, "the table")


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfZo\xc3\xab")
    assert reading.read_text(tmp_path / "x", "it") == "Zoë"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the table .*absent: No such file"):
        reading.read_text(tmp_path / "absent", "the table")
    with pytest.raises(InputError, match=r"cannot read the table .*: Is a directory"):
        reading.read_text(tmp_path, "the table")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 1: not JSON"),
        ('{"a": 1,\n"b": 2,\n}', "line 3: not JSON"),
        ('{"a": 1}\n{"b": 2}', "line 2: not JSON"),
        ("[]", r"holds a list: expected an object \(the log\)"),
        ("null", "holds a NoneType: expected an object"),
        ('"text"', "holds a str: expected an object"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
)
def test_json_that_is_none_is_named_with_its_line(tmp_path, text, sentence):
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(InputError, match=rf"log\.json.*{sentence}"):
        reading.read_json(tmp_path / "log.json", "the log")


# ---- tensors ----

ARRAYS = {
    "float64": np.arange(6.0).reshape(2, 3),
    "float32": np.arange(6, dtype=np.float32).reshape(3, 2).T,  # not contiguous
    "float16": np.float16([1.5, -2]),
    "int64": np.array([2**40, -1]),
    "uint8": np.frombuffer(b"abc", np.uint8),
    "empty": np.zeros((3, 0, 2), np.float32),
    "scalar": np.array(7.0),
}


def test_tensors_come_back_as_read_only_views_with_their_metadata(tmp_path):
    write_tensors(tmp_path / "t.safetensors", ARRAYS, {"step": "3"})
    tensors, metadata = map_tensors(tmp_path / "t.safetensors", "it")
    assert metadata == {"step": "3"}
    assert set(tensors) == set(ARRAYS)
    for name, a in ARRAYS.items():
        b = tensors[name]
        assert (b.shape, b.dtype) == (a.shape, a.dtype), name
        assert np.array_equal(a, b)
        assert not b.flags.writeable


def test_every_bfloat16_is_widened_to_the_float32_of_the_same_value(tmp_path):
    import torch
    from safetensors.torch import save_file

    wide = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    save_file({"x": wide.reshape(256, 256)}, tmp_path / "t.safetensors")
    x = map_tensors(tmp_path / "t.safetensors", "it")[0]["x"]
    assert (x.shape, x.dtype) == ((256, 256), np.float32)
    assert np.array_equal(x, wide.float().numpy().reshape(256, 256), equal_nan=True)


def test_a_missing_file_of_tensors_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the state .*absent: No such file"):
        map_tensors(tmp_path / "absent", "the state")


# ---- folders of runs ----

MARKS = ("log.jsonl", "state", "steps")


# ---- what stands in the place of a file ----

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4665ca1a3b2cbd2e9a8d1f9d6a5f5d0e0f0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d
size 548105171
"""
PAGES = [
    b"<!DOCTYPE html>\n<html><head><title>model.safetensors</title></head></html>\n",
    b"\xef\xbb\xbf\r\n <HTML lang=en>",
]
READERS = {
    "bytes": (reading.read_bytes, "x.bin"),
    "text": (reading.read_text, "merges.txt"),
    "json": (reading.read_json, "config.json"),
    "tensors": (map_tensors, "model.safetensors"),
    "pairs": (lambda path, _: read_pairs(path), "data.jsonl"),
    "table": (lambda path, _: read_pairs(path), "data.CSV"),
    "requests": (lambda path, _: read_requests(path), "requests.jsonl"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_git_lfs_pointer_in_place_of_a_file_is_named(tmp_path, reader):
    read, name = READERS[reader]
    (tmp_path / name).write_bytes(POINTER)
    said = f"{name} is a Git LFS pointer, which only stands for .*: run `git lfs pull` in its fold"
    with pytest.raises(InputError, match=said):
        read(tmp_path / name, "the file")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "bytes"])
def test_a_web_page_in_place_of_a_file_is_named(tmp_path, reader, page):
    read, name = READERS[reader]
    (tmp_path / name).write_bytes(page)
    with pytest.raises(InputError, match=f"{name} is an HTML page and not .*fetch the file itself"):
        read(tmp_path / name, "the file")


def test_text_about_html_or_git_lfs_is_text(tmp_path):
    for text in ("<htmlish> tags", "html\n<html>", "version https://git-lfs"):
        (tmp_path / "x.txt").write_text(text)
        assert reading.read_text(tmp_path / "x.txt", "the text") == text


def test_a_new_folder_is_made_with_those_above(tmp_path):
    saving.new_folder(tmp_path / "a" / "b", MARKS, force=False)
    assert content(tmp_path / "a" / "b") == {}


@pytest.mark.parametrize("force", [False, True])
def test_files_that_belong_to_no_run_are_left_alone(tmp_path, force):
    (tmp_path / "notes.txt").write_bytes(b"mine")
    saving.new_folder(tmp_path, MARKS, force)
    assert content(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("mark", MARKS)
def test_a_folder_that_holds_a_run_is_refused_and_untouched(tmp_path, mark):
    (tmp_path / mark).write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"already holds a run \({mark}\): choose another --out"):
        saving.new_folder(tmp_path, MARKS, force=False)
    assert content(tmp_path) == {mark: b"", "notes.txt": b"mine"}


def test_force_removes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"1")
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "1").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / "state.old").write_bytes(b"mine")
    saving.new_folder(tmp_path, MARKS, force=True)
    assert content(tmp_path) == {"notes.txt": b"mine", "state.old": b"mine"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_run_in_place_of_a_file_is_a_sentence(tmp_path, force, below):
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"cannot make folder .*taken"):
        saving.new_folder(tmp_path / "taken" / below, MARKS, force)
    assert content(tmp_path) == {"taken": b"mine"}
