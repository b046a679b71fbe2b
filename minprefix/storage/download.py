"""A file of a model from the hub: checked against its hash, a broken download resumed.

A server that sends nothing, or less than `SLOWEST`, for huggingface_hub's HF_HUB_DOWNLOAD_TIMEOUT
(10 s) counts as broken off, as do a dropped connection and the statuses 408, 429 and 5xx. After
`ATTEMPTS` of them for one file, with pauses of 1, 2 and 4 s between, there is a sentence: within a
minute of the last useful byte.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.errors import InputError

#: how often a request is made, with PAUSE seconds before the second and twice as many each time
ATTEMPTS, PAUSE = 4, 1.0
SLOWEST = 1000  #: bytes a second
HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class File(NamedTuple):
    """A file as the hub announces it: sha256 (64 digits), or git's sha1 of a small one (40)."""

    size: int
    hash: str


def hash_of(path: Path, announced: str) -> str:
    """The hash of a file, of the kind that was announced for it."""
    with open(path, "rb") as f:
        if len(announced) == 64:
            return hashlib.file_digest(f, "sha256").hexdigest()
        git = hashlib.sha1(b"blob %d\0" % os.fstat(f.fileno()).st_size, usedforsecurity=False)
        return hashlib.file_digest(f, lambda: git).hexdigest()


def wrong_file(what: str, want: str, got: str) -> InputError:
    kind = "sha256" if len(want) == 64 else "git's sha1"
    return InputError(
        f"{what} is not the file that the hub announced ({kind} {got}, expected {want}): it was "
        "removed; load the model again, and if that stays so, do not trust the server"
    )


def fetch(repo: str, commit: str, name: str, file: File, partial: Path) -> None:
    """Download into `partial`, after the bytes that it has already, and check it."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo, name, revision=commit)

    def attempt() -> None:
        partial.touch()
        resumed = partial.stat().st_size
        if resumed < file.size:
            in_time(lambda arrived: _receive(url, partial, file.size, name, arrived))
        if (got := hash_of(partial, file.hash)) != file.hash:
            partial.unlink()
            if resumed:  # perhaps only the older bytes are wrong
                raise _Break(f"the hash was {got} after a resumed download")
            raise wrong_file(f"{name} of model {repo!r} as it came from the hub", file.hash, got)

    try:
        again(attempt, ATTEMPTS, is_network)
    except Exception as error:
        if not is_network(error):
            raise
        kept = partial.stat().st_size if partial.exists() else 0
        raise InputError(
            f"{name} of model {repo!r} broke off after {kept:,} of {file.size:,} bytes, at the "
            f"last of {ATTEMPTS} attempts ({reason_of(error)}): the same command goes on from there"
        ) from error


def _receive(url: str, partial: Path, size: int, name: str, arrived: Callable[[int], None]) -> None:
    """Append the missing bytes to `partial`."""
    from huggingface_hub import constants, get_session
    from huggingface_hub import utils as hf
    from tqdm import tqdm

    have = partial.stat().st_size
    headers = hf.build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=wait) as response:
        if response.status_code == 416:  # what is there cannot be continued
            partial.unlink()
            raise _Break("the hub answered 416")
        hf.hf_raise_for_status(response)
        if response.status_code != 206:  # the hub sends all of it again
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Break("the hub sent another range than the one asked for")
        silent = hf.are_progress_bars_disabled() or None  # None: only on a terminal
        bar = tqdm(desc=name, total=size, initial=have, unit="B", unit_scale=True, disable=silent)
        with bar, open(partial, "ab" if have else "wb") as f:
            for block in response.iter_bytes():
                arrived(len(block))
                have += len(block)
                if have > size:
                    partial.unlink()
                    more = f"the hub sends more than the {size:,} bytes of {name} that it announced"
                    raise InputError(f"{more}: try again, or do not trust the server")
                f.write(block)
                f.flush()  # so that a kill leaves them
                bar.update(len(block))
            os.fsync(f.fileno())  # before it gets its final name
    if have < size:
        raise _Break("the hub sent fewer bytes than it announced")


class _Break(Exception):
    """A failure that another attempt may mend."""


def reason_of(error: Exception) -> str:
    status = _status(error)
    if status is not None:
        return f"the hub answered {status}"
    return str(error) if isinstance(error, _Break) else type(error).__name__


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def is_network(error: Exception) -> bool:
    """Whether the network or the server failed; else the error is the answer to the request."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    local = isinstance(error, OSError) and error.errno is not None
    return not local and not isinstance(error, InputError)


def may_come(error: Exception) -> bool:
    """Whether another attempt may bring a listing: not if nothing can be reached at all."""
    unreachable = ("ConnectError", "ProxyError", "OfflineModeIsEnabled")
    return is_network(error) and type(error).__name__ not in unreachable


def again(work: Callable[[], Any], attempts: int, worthwhile: Callable[[Exception], bool]) -> Any:
    """`work()`, up to `attempts` times as long as its errors are worth another one."""
    for n in range(attempts):
        try:
            return work()
        except Exception as error:
            if n == attempts - 1 or not worthwhile(error):
                raise
        time.sleep(PAUSE * 2**n)
    raise AssertionError


def in_time(work: Callable[[Callable[[int], None]], Any]) -> Any:
    """`work(arrived)`, which calls `arrived(n)` for every n bytes, in a thread that is given up if
    too few come. (The client's own timeout starts again with every byte.)"""
    from huggingface_hub import constants

    wait, came, given_up = constants.HF_HUB_DOWNLOAD_TIMEOUT, [0], threading.Event()
    done: Future[Any] = Future()

    def arrived(n: int) -> None:
        if given_up.is_set():
            raise _Break("given up")
        came[0] += n

    def run() -> None:
        try:
            done.set_result(work(arrived))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.done():
            before = came[0]
            futures.wait([done], 1.1 * wait)  # the client's own timeout comes first
            if not done.done() and came[0] - before < SLOWEST * wait:
                raise _Break(f"less than {SLOWEST * wait:,} bytes came in {wait} s")
        return done.result()
    finally:
        given_up.set()
