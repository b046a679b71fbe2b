"""Writing that never leaves half a file, and reading that says where a file is wrong."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minprefix import InputError, files


@pytest.fixture
def old(tmp_path):
    """A file of an earlier save, in a folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "state").write_bytes(b"the last good state")
    return folder / "state"


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ---- writing ----


def test_write_bytes_replaces_the_file_and_leaves_nothing_beside_it(old):
    files.write_bytes(old, b"new")
    assert content(old.parent) == {"state": b"new"}


def test_write_bytes_makes_the_folders_above(tmp_path):
    files.write_bytes(tmp_path / "a" / "b" / "c", b"new")
    assert content(tmp_path / "a" / "b") == {"c": b"new"}


def test_the_data_reaches_the_disk_before_it_takes_the_name(old, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name: (steps.append(name), real(*a))[1]
        )
    files.write_bytes(old, b"new")
    assert steps[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_the_old_file_whole(old, monkeypatch, call, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    sentence = f"cannot write .*state: {os.strerror(code)}; the last one saved is intact; make room"
    with pytest.raises(InputError, match=sentence):
        files.write_bytes(old, b"new" * 1000)
    assert content(old.parent) == {"state": b"the last good state"}


def test_where_nothing_was_saved_before_nothing_is_said_to_be_intact(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"first: No space left on device; make room") as error:
        files.write_bytes(tmp_path / "first", b"new")
    assert "intact" not in str(error.value)
    assert content(tmp_path) == {}


def test_ctrl_c_while_writing_leaves_the_old_file_and_nothing_beside_it(old, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(old, b"new")
    assert content(old.parent) == {"state": b"the last good state"}


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from minprefix import InputError, files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel answers EFBIG instead
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
for write in (
    lambda: files.write_bytes(path, b"x" * 200_000),
    lambda: files.write_json(path, {"x": "x" * 200_000}),
    lambda: files.write_tensors(path, {"x": np.zeros(50_000)}, {}),
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
from minprefix import files
name, after = sys.argv[2], sys.argv[3] == "after"
real = getattr(os, name)
def kill(*a):
    if after:
        real(*a)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, name, kill)
files.write_bytes(Path(sys.argv[1]), b"new" * 1000)
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
    files.write_bytes(old, b"the run goes on")
    assert old.read_bytes() == b"the run goes on"


def test_a_reader_never_sees_half_a_file(old):
    versions = [bytes([i]) * 100_000 for i in range(4)]
    files.write_bytes(old, versions[0])
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(old.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for data in versions * 10:
        files.write_bytes(old, data)
    stop.set()
    reader.join()
    assert seen
    assert seen <= set(versions)


@pytest.mark.parametrize("below", ["state/file", "state/deep/file"])
def test_a_folder_that_is_a_file_is_a_sentence(old, below):
    with pytest.raises(InputError, match=r"cannot write .*file: .*choose another folder"):
        files.write_bytes(old.parent / below, b"new")
    assert content(old.parent) == {"state": b"the last good state"}


def test_a_file_that_is_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*taken: Is a directory"):
        files.write_bytes(tmp_path / "taken", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_text_and_json_are_utf_8_with_their_own_letters(tmp_path):
    files.write_text(tmp_path / "text", "Zoë\n")
    files.write_json(tmp_path / "json", {"name": "Zoë £20", "n": None})
    assert (tmp_path / "text").read_bytes() == "Zoë\n".encode()
    assert "Zoë £20" in (tmp_path / "json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "json", "it") == {"name": "Zoë £20", "n": None}


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
        files.read_text(path, "the table")


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfZo\xc3\xab")
    assert files.read_text(tmp_path / "x", "it") == "Zoë"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the table .*absent: No such file"):
        files.read_text(tmp_path / "absent", "the table")
    with pytest.raises(InputError, match=r"cannot read the table .*: Is a directory"):
        files.read_text(tmp_path, "the table")


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
        files.read_json(tmp_path / "log.json", "the log")


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
    files.write_tensors(tmp_path / "t.safetensors", ARRAYS, {"step": "3"})
    tensors, metadata = files.map_tensors(tmp_path / "t.safetensors", "it")
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
    x = files.map_tensors(tmp_path / "t.safetensors", "it")[0]["x"]
    assert (x.shape, x.dtype) == ((256, 256), np.float32)
    assert np.array_equal(x, wide.float().numpy().reshape(256, 256), equal_nan=True)


def test_a_missing_file_of_tensors_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the state .*absent: No such file"):
        files.map_tensors(tmp_path / "absent", "the state")


# ---- folders of runs ----

MARKS = ("log.jsonl", "state", "steps")


def test_a_new_folder_is_made_with_those_above(tmp_path):
    files.new_folder(tmp_path / "a" / "b", MARKS, force=False)
    assert content(tmp_path / "a" / "b") == {}


@pytest.mark.parametrize("force", [False, True])
def test_files_that_belong_to_no_run_are_left_alone(tmp_path, force):
    (tmp_path / "notes.txt").write_bytes(b"mine")
    files.new_folder(tmp_path, MARKS, force)
    assert content(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("mark", MARKS)
def test_a_folder_that_holds_a_run_is_refused_and_untouched(tmp_path, mark):
    (tmp_path / mark).write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"already holds a run \({mark}\): choose another --out"):
        files.new_folder(tmp_path, MARKS, force=False)
    assert content(tmp_path) == {mark: b"", "notes.txt": b"mine"}


def test_force_removes_the_run_and_nothing_else(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"1")
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "1").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    (tmp_path / "state.old").write_bytes(b"mine")
    files.new_folder(tmp_path, MARKS, force=True)
    assert content(tmp_path) == {"notes.txt": b"mine", "state.old": b"mine"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_run_in_place_of_a_file_is_a_sentence(tmp_path, force, below):
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"cannot make folder .*taken"):
        files.new_folder(tmp_path / "taken" / below, MARKS, force)
    assert content(tmp_path) == {"taken": b"mine"}
