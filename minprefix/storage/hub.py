"""Models from the hub: one commit, every file checked against its hash, a broken download resumed.

huggingface_hub talks to the hub (addresses, tokens, proxies, errors) and says where the cache is,
whose layout is kept, so that other software finds the files. Its own download uses whatever bytes
of the right number came, starts again from the first one, and waits for a listing without end.

What is trusted is the listing that the hub sends for a commit, over TLS: it announces a sha256 for
each large file and git's sha1 for the others. A pinned commit names the listing that is asked for;
that the listing belongs to the commit is the hub's word.

A file takes its place in the cache only after its check, so a kill leaves none there unchecked.
Beside them `minprefix/<commit>.2.json` keeps the listing, with the size and time of each file when
it was checked: one that has both still is not read again, any other (placed by other software, or
changed since) is. Without a network other software's files are checked by their links to blobs,
which are named by their hashes; a cache without links is found, and its folder named, not used.

A model in the cache waits for one attempt at the listing, 11 s.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.errors import InputError, listed
from minprefix.storage import download, tokenizer
from minprefix.storage.download import HASH, File, hash_of
from minprefix.storage.reading import read_json
from minprefix.storage.tensors import ADAPTER_FILES, unopened
from minprefix.storage.writing import write_json, write_text

WANTED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *tokenizer.FILES,
)

COMMIT = re.compile("[0-9a-f]{40}")
#: a part of what git allows: the revision becomes a path
REVISION = re.compile(r"(?!.*\.\.)(?!/)[^\s\\:~^?*\[]+")


class Cache(NamedTuple):
    """Where huggingface_hub keeps a repository: blobs under their hashes, snapshots that link to
    them under their names."""

    folder: Path

    @staticmethod
    def of(repo: str, root: str) -> "Cache":
        return Cache(Path(root) / f"models--{repo.replace('/', '--')}")

    def commit(self, revision: str | None) -> str | None:
        """What `revision` was when it was last fetched."""
        if revision is not None and COMMIT.fullmatch(revision):
            return revision
        with contextlib.suppress(OSError, ValueError):
            found = (self.folder / "refs" / (revision or "main")).read_text(encoding="utf-8")
            return found if COMMIT.fullmatch(found) else None
        return None

    def place(self, commit: str, name: str) -> Path:
        return self.folder / "snapshots" / commit / name

    def holds(self, commit: str | None) -> bool:
        return commit is not None and os.path.lexists(self.place(commit, "config.json"))

    def remove(self, path: Path) -> None:
        """A file, and the blob that it links to."""
        if path.is_symlink():
            (self.folder / "blobs" / Path(os.readlink(path)).name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def record(self, commit: str, version: str = ".2") -> Path:
        """Version 0.1.0 wanted fewer files, and its records have no version."""
        return self.folder / "minprefix" / f"{commit}{version}.json"

    def checked(self, commit: str, version: str = ".2") -> "Checked":
        """The record of a commit; {} if there is none, or a damaged one."""
        try:
            found = read_json(self.record(commit, version), "the record of a download")
        except InputError:
            return {}
        known = (
            _wanted(name)
            and isinstance(entry, list)
            and [type(part) for part in entry] == [str, int, int]
            and HASH.fullmatch(entry[0])
            for name, entry in found.items()
        )
        return found if all(known) else {}

    def keep(self, commit: str, checked: "Checked") -> None:
        with contextlib.suppress(InputError):  # a read-only cache
            write_json(self.record(commit), checked)


#: {name: [hash, size, time]} of all files in a listing; the time is 0 until a file is checked
Checked = dict[str, list[Any]]


def snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a model's files at a commit, each as the hub announced it.

    A branch is resolved to its commit once, by the request that lists the files. A commit that was
    fetched and checked needs no request; without a network a branch is what it last was. Raises
    InputError, in bounded time; another process that fetches the same model is waited for.
    """
    try:
        return _snapshot(repo, revision)
    except InputError:
        raise
    except Exception as error:  # every way in which a network fails, of whatever client library
        raise InputError(_why_not(repo, revision, error)) from error


def _why_not(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    match error:
        case errors.GatedRepoError():
            why, do = "is gated", "accept its terms on the hub, then set HF_TOKEN to a token"
        case errors.RevisionNotFoundError():
            why = f"has no revision {revision!r} on the hub"
            do = "give a branch, a tag or a whole commit"
        case errors.HFValidationError() | errors.RepositoryNotFoundError():
            why = "is neither a folder here nor a name on the hub"
            do = "check the spelling, or give a folder with config.json and model.safetensors"
        case OSError(errno=int()):
            where = f"{constants.HF_HUB_CACHE} ({error.strerror})"
            do = "make room there, or set HF_HOME to another folder"
            return f"cannot keep model {repo!r} in the cache {where}: {do}"
        case _:
            what = f"model {repo!r}{f' at {revision}' if revision else ''}"
            do = "put its .json, .txt and .safetensors files into a folder and give that folder"
            why = f"cannot fetch {what} from the hub ({download.reason_of(error)})"
            return f"{why}: without a network, {do} instead of the name"
    return f"model {repo!r} {why}: {do}"


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    if revision is not None and not REVISION.fullmatch(revision):
        raise InputError(f"revision {revision!r} is no branch, tag or commit: give one of these")
    cache = Cache.of(repo, constants.HF_HUB_CACHE)
    commit = cache.commit(revision)
    checked = cache.checked(commit) if commit else {}
    if commit is not None and commit == revision and _stand(cache, commit, checked):
        return cache.place(commit, "")
    there = any(other.holds(other.commit(revision)) for other in _caches(repo))
    try:
        attempts = 1 if there else download.ATTEMPTS
        found, listing = download.again(
            lambda: _listing(repo, revision), attempts, download.may_come
        )
    except Exception as error:
        if not download.is_network(error):
            raise
        return _offline(repo, revision, error)
    hashes = {name: entry[0] for name, entry in checked.items()}
    same = commit == found and hashes == {name: file.hash for name, file in listing.items()}
    if not same or not _stand(cache, found, checked):
        with _lock(cache.folder):
            _fill(repo, found, listing, cache)
            if found != revision:
                with contextlib.suppress(InputError):
                    write_text(cache.folder / "refs" / (revision or "main"), found)
    return cache.place(found, "")


def _fill(repo: str, commit: str, listing: dict[str, File], cache: Cache) -> None:
    """Bring all files of a listing to their places, and keep the record of it."""
    was = cache.checked(commit)  # perhaps by the process that was waited for
    checked = {}
    for name, file in listing.items():
        same = name in was and was[name][0] == file.hash
        checked[name] = was[name] if same else [file.hash, file.size, 0]
    cache.keep(commit, checked)
    for name, file in listing.items():
        place = cache.place(commit, name)
        if not _stands(place, checked[name]):
            _bring(repo, commit, name, file, cache)
            checked[name] = [file.hash, *_stamp(place)]
    cache.keep(commit, checked)


def _listing(repo: str, revision: str | None) -> tuple[str, dict[str, File]]:
    """A commit, and the wanted files of it."""
    from huggingface_hub import HfApi, constants

    wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
    info = download.in_time(
        lambda _: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=wait)
    )
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision or "") and commit != revision):
        asked = revision or "its main branch"
        raise InputError(f"the hub answers commit {commit!r} for {asked} of {repo!r}: try again")
    names = {found.rfilename: found for found in info.siblings or ()}
    listing = {}
    for name in filter(_wanted, names):
        found = names[name]
        size, digest = found.size, found.blob_id
        if found.lfs:
            size, digest = found.lfs.size, found.lfs.sha256
        if type(size) is not int or not HASH.fullmatch(str(digest)):
            raise InputError(
                f"the hub announces no hash for {name} of {repo!r} at {commit}, so it cannot be "
                "checked: fetch the files by hand and give their folder"
            )
        listing[name] = File(size, digest)
    if not any(name.endswith(".safetensors") for name in listing):
        error = no_weights(f"model {repo!r} on the hub", names)
        fetch_it = f"`hf download {repo} --local-dir DIR` fetches it"
        raise InputError(f"{error}; {fetch_it}, and the name of the model is then DIR")
    return commit, listing


def no_weights(where: str, names: Iterable[str], folder: Path | None = None) -> InputError:
    """The sentence about a repository, or a `folder`, of files `names` without model.safetensors,
    with what there is instead."""
    names = list(names)
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if "config.json" not in names and (adapter := ADAPTER_FILES & set(names)):
        hint = f"{adapter.pop()} is an adapter's: give it as --prefix, and its base as --model"
    elif (why := unopened(names, "model.safetensors")) is not None:
        hint = why
    elif others:
        hint = f"if {listed(others)} is the whole model, rename it to model.safetensors"
    elif folder is not None:
        hint = "it was not fetched, so load the model once with a network"
    else:
        hint = "expected that, or shards with model.safetensors.index.json"
    cached = "" if folder is None else f"; the folder is {folder}"
    return InputError(f"{where} has no model.safetensors: {hint}{cached}")


def _wanted(name: str) -> bool:
    """Whether this is a file of a model; its name does not lead out of the folder."""
    return not {"/", "\\"} & set(name) and any(fnmatchcase(name, wanted) for wanted in WANTED)


def _stamp(path: Path) -> list[int]:
    """Size and time of a file. If they differ, it is no longer the one that was checked."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _stands(path: Path, entry: list[Any]) -> bool:
    try:
        return _stamp(path) == entry[1:]
    except OSError:
        return False


def _stand(cache: Cache, commit: str, checked: Checked) -> bool:
    return bool(checked) and all(_stands(cache.place(commit, n), e) for n, e in checked.items())


#: the new owners of repositories from the hub's first years, when names had no "/"
MOVED = {"openai-community": ("gpt2",), "distilbert": ("distilgpt2",)}


class _Unsure(InputError):
    """The files are there, and nothing there says what they must be."""


def _caches(repo: str) -> Iterator[Cache]:
    """Where the files of a repository may be: under its name and its earlier or later one, in
    huggingface_hub's cache and in the cache of older versions of transformers."""
    from huggingface_hub import constants

    owner, _, name = repo.rpartition("/")
    names = [repo]
    for now, starts in MOVED.items():
        if owner in ("", now) and name.startswith(starts):
            names.append(name if owner else f"{now}/{name}")
    told = (os.environ.get(v) for v in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"))
    for root in dict.fromkeys((str(constants.HF_HUB_CACHE), *filter(None, told))):
        yield from (Cache.of(one, root) for one in names)


def _offline(repo: str, revision: str | None, error: Exception) -> Path:
    """The folder of a model in a cache, checked. Raises `error` if there is none, and InputError
    for one that is not whole or cannot be checked: the sentence names the folder to give."""
    failed: list[InputError] = []
    for cache in _caches(repo):
        commit = cache.commit(revision)
        if commit is not None and cache.holds(commit):
            try:
                _check_offline(repo, commit, cache)
                return cache.place(commit, "")
            except InputError as reason:
                failed.append(reason)
            continue
        asked = f" at {revision}" if revision else ""
        for other in sorted((cache.folder / "snapshots").glob("*")):
            if (other / "config.json").exists() and any(other.glob("model*.safetensors")):
                lost = f"model {repo!r}{asked} is not in the cache, and there is no network"
                do = "if it is the right one, give this folder instead of the name"
                failed.append(_Unsure(f"{lost}; {other} has that name at some commit: {do}"))
    if failed:  # first a sentence that leaves the choice to the user
        raise min(failed, key=lambda reason: not isinstance(reason, _Unsure)) from error
    raise error


def _check_offline(repo: str, commit: str, cache: Cache) -> None:
    """Raises InputError unless the files of a commit are as they were announced when they came. A
    file that other software fetched is checked against its name in the cache, which is the hash."""
    checked = cache.checked(commit) or cache.checked(commit, version="")
    place = cache.place(commit, "")
    announced = {name: entry[0] for name, entry in checked.items()}
    if not checked:
        found = [path for path in place.iterdir() if _wanted(path.name)]
        if not any(path.suffix == ".safetensors" for path in found):
            raise no_weights(f"model {repo!r} at {commit} in the cache", os.listdir(place), place)
        if not all(path.is_symlink() for path in found):
            raise _Unsure(
                f"model {repo!r} is in the cache, in {place}, but its files are no links to their "
                "hashes: load the model once with a network or, if you trust these files, give "
                "that folder instead of the name"
            )
        announced = {path.name: Path(os.readlink(path)).name for path in found}
    for name, want in announced.items():
        path = cache.place(commit, name)
        if name in checked and _stands(path, checked[name]):
            continue
        if not path.exists() or not HASH.fullmatch(want):
            lost = f"{name} of model {repo!r} at {commit} is not in the cache, or was never checked"
            raise InputError(f"{lost}: load the model once with a network")
        if (got := hash_of(path, want)) != want:
            cache.remove(path)
            raise download.wrong_file(f"{name} of model {repo!r} in the cache", want, got)


def _bring(repo: str, commit: str, name: str, file: File, cache: Cache) -> None:
    """Put a file where it belongs, from the cache or from the hub."""
    place, blob = cache.place(commit, name), cache.folder / "blobs" / file.hash
    for path in (place, blob):  # from elsewhere, or no longer what was checked
        if path.exists():
            if hash_of(path, file.hash) != file.hash:
                cache.remove(path)
            elif path == place:
                return
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        begun = blob.with_name(f"{file.hash}.minprefix.incomplete")
        download.fetch(repo, commit, name, file, begun)
        os.replace(begun, blob)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:  # Windows, where links are a privilege
        os.replace(blob, place)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time fetches a model, and the others wait. Does nothing in a read-only
    cache."""
    from huggingface_hub.utils import WeakFileLock

    path = folder.parent / ".locks" / folder.name / "minprefix.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(path))
        yield
