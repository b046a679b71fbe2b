"""Hundreds of prefixes for one frozen model: read when they are asked for, held within a budget of
bytes."""

import difflib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from minprefix.errors import InputError, counted
from minprefix.generate import Decoding, generate_ids
from minprefix.model import GPT2
from minprefix.ops.contract import Ops
from minprefix.prefix import Prefix
from minprefix.storage import artifact
from minprefix.storage.provenance import Base
from minprefix.storage.saving import SAVING, finish_save, only_writer, read_together
from minprefix.storage.tensors import map_tensors

#: a prefix's name is its folder's, and never leads out of the store
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}")


class Prompt(NamedTuple):
    ids: Sequence[int]
    prefix: str | None  # its name; None: the frozen model itself
    decoding: Decoding


class _Held(NamedTuple):
    prefix: Prefix
    stamp: tuple[int, ...]  # of the files that it was read from
    size: int  # bytes


class PrefixStore:
    """Named prefixes of one model, each in a folder of its own: `store["formal"]`.

    `places`: a folder that holds them, or a dict of names and folders. A prefix is read at its
    first use, and again when its files have changed. At most `budget` bytes of keys and values are
    held; the prefix that was asked for longest ago goes first. A prefix still in use elsewhere is
    not counted. The model's fingerprint is computed once. Several threads may share a store.

    Raises InputError for an unknown name, for a prefix that alone is larger than the budget, and
    for all that `Prefix.load` refuses, such as a prefix of another base.
    """

    def __init__(
        self, places: str | Path | Mapping[str, str | Path], model: GPT2, budget: int = 256 * 2**20
    ) -> None:
        if budget < 1:
            raise InputError(f"the budget is {budget} bytes: expected at least 1")
        self.model, self.budget = model, budget
        self.folder = None if isinstance(places, Mapping) else Path(places)
        given = places if isinstance(places, Mapping) else {}
        self._places = {name: Path(place) for name, place in given.items()}
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"the store {self.folder} is a file: give a folder")
        self._held: OrderedDict[str, _Held] = OrderedDict()  # last: asked for last
        self._lock = threading.RLock()

    @cached_property
    def _base(self) -> Base:
        return self.model.identity()

    # ---- what is there ----

    def names(self) -> list[str]:
        """The names of all prefixes, in alphabetical order."""
        if self.folder is None:
            return sorted(self._places)
        if not self.folder.exists():
            return []
        return sorted(p.name for p in self.folder.iterdir() if p.name in self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if self.folder is None:
            return name in self._places
        parts = (self.folder / name / part for part in (*artifact.TENSORS, SAVING))
        return NAME.fullmatch(name) is not None and any(part.exists() for part in parts)

    def place(self, name: str) -> Path:
        """The folder of a prefix. Raises InputError for an unknown name or a missing folder."""
        if name not in self:
            raise InputError(self.missing(name))
        place = self._places[name] if self.folder is None else self.folder / name
        if not place.is_dir():
            wanted = "expected one that was saved"
            raise InputError(f"prefix folder {str(place)!r} does not exist: {wanted}")
        return place

    def missing(self, name: str) -> str:
        """The sentence about an unknown name, with the names that are like it."""
        names = self.names()
        close = difflib.get_close_matches(name, names, n=3)
        hint = ", ".join(map(repr, close or names[:3])) or "none"
        of = f"of {len(names)}: " if len(names) > 3 or close else ""
        return f"there is no prefix {name!r} in the store ({of}{hint})"

    @property
    def held(self) -> int:
        """The bytes of keys and values in memory."""
        with self._lock:
            return sum(h.size for h in self._held.values())

    def __repr__(self) -> str:
        return (
            f"PrefixStore({counted(len(self), 'prefix', 'prefixes')}, {len(self._held)} of them "
            f"held: {self.held:,} of {self.budget:,} bytes, for {self.model.name!r})"
        )

    # ---- getting, adding, removing ----

    def __getitem__(self, name: str) -> Prefix:
        folder = self.place(name)
        with self._lock:  # another process may be replacing it
            return read_together(folder, artifact.FILES, lambda: self._get(name, folder))

    def _get(self, name: str, folder: Path) -> Prefix:
        stamp = _stamp(folder)
        held = self._held.get(name)
        if held is not None and held.stamp == stamp:
            self._held.move_to_end(name)
            return held.prefix
        self._held.pop(name, None)
        size = self._size_within_budget(name)
        while self.held + size > self.budget:  # before reading, so that both never stand
            self._held.popitem(last=False)
        prefix = Prefix.load(folder, self.model, str(self.model.dtype), self._base)
        prefix = prefix.to(self.model.backend)
        if self.model.backend == "numpy":
            for a in prefix.parameters.values():  # every caller gets the same arrays
                a.flags.writeable = False
        self._held[name] = _Held(prefix, stamp, size)
        return prefix

    def size(self, name: str) -> int:
        """The bytes that this prefix takes in memory, found without reading its numbers."""
        folder = self.place(name)
        return read_together(folder, artifact.FILES, lambda: self._size(name, folder))

    def _size(self, name: str, folder: Path) -> int:
        for path in (folder / n for n in artifact.TENSORS):
            if path.exists():
                tensors, _ = map_tensors(path, "the prefix")
                return sum(a.size for a in tensors.values()) * self.model.dtype.itemsize
        saved, _ = artifact.read_prefix(folder)  # raises InputError: it says what is there instead
        return saved.kv.size * self.model.dtype.itemsize

    def _size_within_budget(self, name: str) -> int:
        size = self._size(name, self.place(name))
        if size > self.budget:
            raise InputError(
                f"prefix {name!r} has {size:,} bytes, the store may hold {self.budget:,}: "
                "give it a larger budget"
            )
        return size

    def add(self, name: str, prefix: Prefix, force: bool = False, **record: Any) -> None:
        """Save `prefix` under a new name; with `force` it may replace the prefix of that name.

        `record`: `training`, `metrics`, `evaluation` of `Prefix.save`. The model and all other
        prefixes stay as they are.
        """
        if self.folder is None:
            raise InputError("this store is a list of folders: save the prefix, name its folder")
        if not NAME.fullmatch(name) or name.endswith((".", " ")):
            raise InputError(
                f"a prefix cannot be called {name!r}: expected 1 to 100 letters, digits, blanks, "
                "'.', '_' and '-', the first of them a letter, a digit or '_'"
            )
        self._check_own(self.folder / name)
        prefix.check(self.model.config, self.model.name)
        with self._lock:
            if name in self and not force:
                raise InputError(f"there is a prefix {name!r} already: choose another name")
            prefix.save(self.folder / name, self.model, base=self._base, **record)

    def remove(self, name: str) -> None:
        """Remove the prefix's files, and its folder if nothing else is in it."""
        folder = self.place(name)
        if self.folder is None:
            raise InputError("this store is a list of folders: remove the folder yourself")
        self._check_own(folder)
        with self._lock:
            self._held.pop(name, None)
            with only_writer(folder):
                finish_save(folder, artifact.FILES)
                # the tensors go first: without them a folder holds no prefix, so a kill leaves a
                # whole prefix or none
                for part in (*artifact.TENSORS, *artifact.FILES):
                    (folder / part).unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()

    def _check_own(self, folder: Path) -> None:
        """Raises InputError for a link: the store reads through it, and writes only in itself."""
        if folder.is_symlink():
            raise InputError(f"{folder} is a link to another folder: change the prefix there")

    # ---- using many at once ----

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        decoding: Decoding | Sequence[Decoding],
        batch_size: int = 32,
        ops: str | Ops | None = None,
    ) -> list[list[int]]:
        """The token ids that follow each prompt with the prefix of each name; None is the frozen
        model itself. `decoding`: one for all, or one each.

        An answer does not depend on the other prompts. Those of one prefix share a batch, and a
        batch has at most as many prefixes as the budget holds.
        """
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        for what, given in (("name", names), ("decoding", each)):
            if (n := len(given)) != len(prompts):
                asked_for = counted(len(prompts), "prompt")
                raise InputError(f"{counted(n, what)} for {asked_for}: give one each")
        asked = [Prompt(*parts) for parts in zip(prompts, names, each, strict=True)]
        written = dict(self.answers(asked, batch_size, ops))
        return [written[i] for i in range(len(asked))]

    def answers(
        self, prompts: Sequence[Prompt], batch_size: int = 32, ops: str | Ops | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """The answers as they come: (the prompt's index, its new token ids)."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        # all of them, before the first prompt is answered
        names = {p.prefix for p in prompts}
        sizes = {n: 0 if n is None else self._size_within_budget(n) for n in names}
        for rows in self._batches(prompts, batch_size, sizes):
            new = self._answer([prompts[i] for i in rows], ops, rows)
            yield from zip(rows, new, strict=True)

    def _batches(
        self, prompts: Sequence[Prompt], batch_size: int, sizes: Mapping[str | None, int]
    ) -> Iterator[list[int]]:
        """Rows of one decoding, at most `batch_size`, whose prefixes fit the budget together."""

        def alike(i: int) -> tuple[str, str, int]:
            return repr(prompts[i].decoding), prompts[i].prefix or "", len(prompts[i].ids)

        rows: list[int] = []
        for i in sorted(range(len(prompts)), key=alike):
            needed = sum(sizes[name] for name in {prompts[j].prefix for j in [*rows, i]})
            if rows and (
                len(rows) == batch_size
                or prompts[i].decoding != prompts[rows[0]].decoding
                or needed > self.budget
            ):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows

    def _answer(
        self, prompts: Sequence[Prompt], ops: str | Ops | None, numbers: Sequence[int]
    ) -> list[list[int]]:
        """The answers of one batch. The prefixes are in use only until it returns."""
        names = list(dict.fromkeys(p.prefix for p in prompts))
        prefixes = [None if name is None else self[name] for name in names]
        which = [names.index(p.prefix) for p in prompts]
        ids, decoding = [p.ids for p in prompts], prompts[0].decoding
        return generate_ids(self.model, ids, prefixes, which, decoding, ops, numbers)


def _stamp(folder: Path) -> tuple[int, ...]:
    """A value that changes with every save: files are replaced, never written into."""
    stamp: list[int] = []
    for name in artifact.FILES:
        try:
            found = (folder / name).stat()
        except OSError:
            stamp.append(0)
        else:
            stamp += [found.st_ino, found.st_mtime_ns, found.st_size]
    return tuple(stamp)
