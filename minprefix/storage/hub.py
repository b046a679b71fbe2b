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
from minprefix.storage import tokenizer
from minprefix.storage.download import (
    ATTEMPTS,
    HASH,
    File,
    again,
    fetch,
    hash_of,
    in_time,
    is_network,
    may_come,
    reason_of,
    wrong_file,
)
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


#: in short what git allows, for it becomes a path
REVISION = re.compile(r"(?!.*\.\.)(?!/)[^\s\\:~^?*\[]+")


class Cache(NamedTuple):
    """Where huggingface_hub keeps a repository: blobs under their hashes, snapshots that link to
    them under their names."""

    folder: Path

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

    def remove(self, path: Path) -> None:
        """A file, and the blob that it links to."""
        if path.is_symlink():
            (self.folder / "blobs" / Path(os.readlink(path)).name).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def record(self, commit: str) -> Path:
        # .2: a record without the number is of a version that wanted fewer files
        return self.folder / "minprefix" / f"{commit}.2.json"

    def earlier_record(self, commit: str) -> Path:
        return self.folder / "minprefix" / f"{commit}.json"

    def checked(self, commit: str, record: Path | None = None) -> "Checked":
        """The record of a commit; {} if there is none, or a damaged one."""
        with contextlib.suppress(InputError):
            found = read_json(record or self.record(commit), "the record of a download")
            known: Checked = {}
            for name, entry in found.items():
                match entry:
                    case [str(digest), int(), int()] if HASH.fullmatch(digest) and _wanted(name):
                        known[name] = entry
            return known if known.keys() == found.keys() else {}
        return {}


#: {name: [hash, size, time]} of all files in a listing; time 0 is that of a file not yet checked
Checked = dict[str, list[Any]]


def snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a model's files at a commit, each as the hub announced it.

    A branch is resolved to its commit once, by the request that lists the files. A commit that was
    fetched and checked needs no request; without a network a branch is what it last was. Raises
    InputError, in bounded time; another process that fetches the same model is waited for.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return _snapshot(repo, revision)
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(
            f"model {repo!r} is gated: accept its terms on the hub, then set HF_TOKEN to a token"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"model {repo!r} has no revision {revision!r} on the hub: give a branch, a tag or a "
            "whole commit"
        ) from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(
            f"model {repo!r} is neither a folder here nor a name on the hub: check the spelling, "
            "or give a folder with config.json and model.safetensors"
        ) from error
    except Exception as error:  # every way in which a network fails, of whatever client library
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"cannot keep model {repo!r} in the cache {constants.HF_HUB_CACHE} "
                f"({error.strerror}): make room there, or set HF_HOME to another folder"
            ) from error
        at = f" at {revision}" if revision else ""
        raise InputError(
            f"cannot fetch model {repo!r}{at} from the hub ({reason_of(error)}): without a "
            "network, put its .json, .txt and .safetensors files into a folder and give that "
            "folder instead of the name"
        ) from error


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    if revision is not None and not REVISION.fullmatch(revision):
        raise InputError(f"revision {revision!r} is no branch, tag or commit: give one of these")
    cache = Cache(Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}")
    commit = cache.commit(revision)
    checked = cache.checked(commit) if commit else {}
    if commit is not None and commit == revision and _stand(cache, commit, checked):
        return cache.place(commit, "")
    there = any(
        os.path.lexists(other.place(at, "config.json"))
        for other in _caches(repo)
        if (at := other.commit(revision)) is not None
    )
    try:
        attempts = 1 if there else ATTEMPTS
        found, listing = again(lambda: _listing(repo, revision), attempts, may_come)
    except Exception as error:
        if not is_network(error):
            raise
        return _offline(repo, revision, error)
    hashes = {name: file.hash for name, file in listing.items()}
    if commit != found or hashes != _hashes(checked) or not _stand(cache, found, checked):
        with _lock(cache.folder):
            _fill(repo, found, listing, cache)
            if found != revision:
                with contextlib.suppress(InputError):
                    write_text(cache.folder / "refs" / (revision or "main"), found)
    return cache.place(found, "")


def _fill(repo: str, commit: str, listing: dict[str, File], cache: Cache) -> None:
    """Bring all files of a listing to their places, and keep record of it."""
    checked = cache.checked(commit)  # perhaps by the process that was waited for
    for name, file in listing.items():
        if name not in checked or checked[name][0] != file.hash:
            checked[name] = [file.hash, file.size, 0]
    checked = {name: checked[name] for name in listing}
    with contextlib.suppress(InputError):  # a cache that nobody may write
        write_json(cache.record(commit), checked)
    for name, file in listing.items():
        place = cache.place(commit, name)
        if not _stands(place, checked[name]):
            _bring(repo, commit, name, file, cache)
            checked[name] = [file.hash, *_stamp(place)]
    with contextlib.suppress(InputError):
        write_json(cache.record(commit), checked)


def _listing(repo: str, revision: str | None) -> tuple[str, dict[str, File]]:
    """A commit, and the wanted files of it."""
    from huggingface_hub import HfApi, constants

    wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
    info = in_time(
        lambda _: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=wait)
    )
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision or "") and commit != revision):
        asked = revision or "its main branch"
        raise InputError(f"the hub answers commit {commit!r} for {asked} of {repo!r}: try again")
    listing = {}
    names = [found.rfilename for found in info.siblings or ()]
    for found in info.siblings or ():
        name = found.rfilename
        if _wanted(name):
            announced = (found.lfs.size, found.lfs.sha256) if found.lfs else ()
            size, digest = announced or (found.size, found.blob_id)
            if type(size) is not int or not HASH.fullmatch(str(digest)):
                raise InputError(
                    f"the hub announces no hash for {name} of {repo!r} at {commit}, so it cannot "
                    "be checked: fetch the files by hand and give their folder"
                )
            listing[name] = File(size, digest)
    if not any(name.endswith(".safetensors") for name in listing):
        error = no_weights(f"model {repo!r} on the hub", names)
        raise InputError(
            f"{error}; `hf download {repo} --local-dir DIR` fetches it, and the name of the model "
            "is then DIR"
        )
    return commit, listing


def no_weights(where: str, names: Iterable[str], folder: Path | None = None) -> InputError:
    """The sentence about a repository, or a `folder`, of files `names` without model.safetensors:
    what there is instead."""
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
    """No name of these leaves the folder."""
    return not {"/", "\\"} & set(name) and any(fnmatchcase(name, wanted) for wanted in WANTED)


def _stamp(path: Path) -> list[int]:
    """Size and time of a file: other ones, and it is no longer the one that was checked."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _stands(path: Path, entry: list[Any]) -> bool:
    try:
        return _stamp(path) == entry[1:]
    except OSError:
        return False


def _stand(cache: Cache, commit: str, checked: Checked) -> bool:
    return bool(checked) and all(_stands(cache.place(commit, n), e) for n, e in checked.items())


def _hashes(checked: Checked) -> dict[str, str]:
    return {name: entry[0] for name, entry in checked.items()}


#: where repositories of the hub's first years went, whose names had no "/" then
MOVED = {"openai-community": ("gpt2",), "distilbert": ("distilgpt2",)}


class _Unsure(InputError):
    """Files that are there, and that nothing there says what they must be."""


def _caches(repo: str) -> Iterator[Cache]:
    """Where the files of a repository may be: under its name and the one that it had or has now, in
    huggingface_hub's cache and in the one that older versions of transformers were told of."""
    from huggingface_hub import constants

    owner, _, name = repo.rpartition("/")
    names = [repo]
    for now, starts in MOVED.items():
        if owner in ("", now) and name.startswith(starts):
            names.append(name if owner else f"{now}/{name}")
    told = (os.environ.get(v) for v in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"))
    for root in dict.fromkeys((str(constants.HF_HUB_CACHE), *filter(None, told))):
        for one in names:
            yield Cache(Path(root) / f"models--{one.replace('/', '--')}")


def _offline(repo: str, revision: str | None, error: Exception) -> Path:
    """The folder of a model that is in a cache, checked. Raises `error` if there is none, and
    InputError for one that is not whole, or that cannot be checked, with the folder to give."""
    failed: list[InputError] = []
    for cache in _caches(repo):
        commit = cache.commit(revision)
        if commit is not None and os.path.lexists(cache.place(commit, "config.json")):
            try:
                _check_offline(repo, commit, cache)
                return cache.place(commit, "")
            except InputError as reason:
                failed.append(reason)
            continue
        asked = f" at {revision}" if revision else ""
        for other in sorted((cache.folder / "snapshots").glob("*")):
            if (other / "config.json").exists() and any(other.glob("model*.safetensors")):
                failed.append(
                    _Unsure(
                        f"model {repo!r}{asked} is not in the cache, and there is no network to "
                        f"fetch it; {other} is a model of that name at some commit: if it is the "
                        "right one, give this folder instead of the name"
                    )
                )
    if failed:  # what a person can decide goes before what is broken
        raise min(failed, key=lambda reason: not isinstance(reason, _Unsure)) from error
    raise error


def _check_offline(repo: str, commit: str, cache: Cache) -> None:
    """Raise InputError unless the files of a commit are those that were announced when they came.

    What only other software fetched is recognised by its name in the cache, which is the hash."""
    checked = cache.checked(commit) or cache.checked(commit, cache.earlier_record(commit))
    place = cache.place(commit, "")
    announced = _hashes(checked)
    if not checked:
        found = [path for path in place.iterdir() if _wanted(path.name)]
        if not any(path.suffix == ".safetensors" for path in found):
            raise no_weights(f"model {repo!r} at {commit} in the cache", os.listdir(place), place)
        if not all(path.is_symlink() for path in found):
            raise _Unsure(
                f"model {repo!r} is in the cache, in {place}, but its files are no links to their "
                "hashes, so that nothing says here what they must be: load the model once with a "
                "network or, if you trust these files, give that folder instead of the name"
            )
        announced = {path.name: Path(os.readlink(path)).name for path in found}
    for name, want in announced.items():
        path = cache.place(commit, name)
        if name in checked and _stands(path, checked[name]):
            continue
        if not path.exists() or not HASH.fullmatch(want):
            raise InputError(
                f"{name} of model {repo!r} at {commit} is not in the cache, or was never checked: "
                "load the model once with a network"
            )
        if (got := hash_of(path, want)) != want:
            cache.remove(path)
            raise wrong_file(f"{name} of model {repo!r} in the cache", want, got)


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
        partial = blob.with_name(f"{file.hash}.minprefix.incomplete")
        fetch(repo, commit, name, file, partial)
        os.replace(partial, blob)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:  # Windows, where links are a privilege
        os.replace(blob, place)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time fetches a model, the others wait; none can into a read-only cache."""
    from huggingface_hub.utils import WeakFileLock

    path = folder.parent / ".locks" / folder.name / "minprefix.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(path))
        yield
