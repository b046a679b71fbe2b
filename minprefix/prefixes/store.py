"""Hundreds of prefixes over one frozen model: a folder of them, loaded on demand, held within a
budget of bytes."""

import difflib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minprefix.errors import InputError, counted
from minprefix.generate import Decoding, generate_ids
from minprefix.model import GPT2
from minprefix.ops.contract import Ops
from minprefix.prefix import Prefix
from minprefix.storage import artifact
from minprefix.storage.saving import SAVING, finish_save, only_writer, read_together
from minprefix.storage.tensors import map_tensors

#: what a prefix may be called: it is a folder's name, and never a way out of the store
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}")


@dataclass
class _Held:
    prefix: Prefix
    stamp: tuple[int, ...]  # of the files that it was read from
    size: int  # bytes


class PrefixStore:
    """Named prefixes of one model, each in a folder of its own: `store["formal"]`.

    `places`: a folder that holds them, or a dict of names and folders. A prefix is read when it is
    asked for, and again when its files have changed. At most `budget` bytes of keys and values are
    held; the one that was asked for longest ago goes first. A prefix that somebody still uses is
    not counted. The fingerprint of the model is computed once. Several threads may share a store.

    Raises InputError for a name that is not there, for a prefix that alone is larger than the
    budget, and for all that `Prefix.load` refuses, a prefix of another base first of all.
    """

    def __init__(
        self,
        places: str | Path | Mapping[str, str | Path],
        model: GPT2,
        budget: int = 256 * 2**20,
    ) -> None:
        if budget < 1:
            raise InputError(f"the budget is {budget} bytes: expected at least 1")
        self.model, self.budget = model, budget
        self.folder = None if isinstance(places, Mapping) else Path(places)
        self._places = (
            {name: Path(p) for name, p in places.items()} if isinstance(places, Mapping) else {}
        )
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"the store {self.folder} is a file: give a folder")
        self._held: OrderedDict[str, _Held] = OrderedDict()  # last: asked for last
        self._base = model.identity()
        self._lock = threading.RLock()

    # ---- what is there ----

    def names(self) -> list[str]:
        """All of them, in the order of the alphabet."""
        if self.folder is None:
            return sorted(self._places)
        if not self.folder.exists():
            return []
        return sorted(
            p.name for p in self.folder.iterdir() if NAME.fullmatch(p.name) and _holds_prefix(p)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._exists(name)

    def _exists(self, name: str) -> bool:
        if self.folder is None:
            return name in self._places
        return NAME.fullmatch(name) is not None and _holds_prefix(self.folder / name)

    def place(self, name: str) -> Path:
        """The folder of a prefix. Raises InputError if there is none of this name."""
        if not self._exists(name):
            raise InputError(self.missing(name))
        return self._places[name] if self.folder is None else self.folder / name

    def missing(self, name: str) -> str:
        """The sentence that there is none of this name, with those that are like it."""
        names = self.names()
        close = difflib.get_close_matches(name, names, n=3)
        hint = ", ".join(map(repr, close or names[:3])) or "none"
        of = f"of {len(names)}: " if len(names) > 3 or close else ""
        return f"there is no prefix {name!r} in the store ({of}{hint})"

    @property
    def held(self) -> int:
        """How many bytes of keys and values are held."""
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
        with self._lock:  # somebody may be replacing it this moment
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
        dtype = str(self.model.dtype)
        prefix = Prefix.load(folder, self.model, dtype, self._base)
        prefix = prefix.to(self.model.backend)
        for a in prefix.parameters.values():  # shared by all who ask
            if self.model.backend == "numpy":
                a.flags.writeable = False
        self._held[name] = _Held(prefix, stamp, size)
        return prefix

    def size(self, name: str) -> int:
        """The bytes that this prefix takes when it is held; its numbers are not read for it."""
        folder = self.place(name)
        return read_together(folder, artifact.FILES, lambda: self._size(name, folder))

    def _size(self, name: str, folder: Path) -> int:
        for path in (folder / n for n in artifact.TENSORS):
            if path.exists():
                tensors, _ = map_tensors(path, "the prefix")
                return sum(a.size for a in tensors.values()) * self.model.dtype.itemsize
        raise InputError(f"prefix {name!r}: {str(folder)!r} holds none")

    def _size_within_budget(self, name: str) -> int:
        size = self._size(name, self.place(name))
        if size > self.budget:
            raise InputError(
                f"prefix {name!r} has {size:,} bytes, the store may hold {self.budget:,}: "
                "give it a larger budget"
            )
        return size

    def add(self, name: str, prefix: Prefix, force: bool = False, **record: Any) -> None:
        """Save `prefix` under a new name; `force`: or in place of the one that has it. `record`:
        `training`, `metrics`, `evaluation` of `Prefix.save`. Neither the model nor another prefix
        is touched."""
        if self.folder is None:
            raise InputError(
                "this store is a list of folders: save the prefix, and name its folder"
            )
        if not NAME.fullmatch(name) or name.endswith((".", " ")):
            raise InputError(
                f"a prefix cannot be called {name!r}: expected 1 to 100 letters, digits, blanks, "
                "'.', '_' and '-', the first of them a letter, a digit or '_'"
            )
        self._check_own(self.folder / name)
        prefix.check(self.model.config, self.model.name)
        with self._lock:
            if self._exists(name) and not force:
                raise InputError(f"there is a prefix {name!r} already: choose another name")
            prefix.save(self.folder / name, self.model, base=self._base, **record)

    def remove(self, name: str) -> None:
        """Remove its files; its folder too, if nothing else is in it."""
        folder = self.place(name)
        if self.folder is None:
            raise InputError("this store is a list of folders: remove the folder yourself")
        self._check_own(folder)
        with self._lock:
            self._held.pop(name, None)
            with only_writer(folder):
                finish_save(folder, artifact.FILES)
                # without its tensor it is no prefix: a kill leaves a whole one or none
                for part in (*artifact.TENSORS, *artifact.FILES):
                    (folder / part).unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()

    def _check_own(self, folder: Path) -> None:
        """A link may be read through; what is written through it would be in another place."""
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
        """What the model writes for each prompt with the prefix of each name; None is the frozen
        model itself. The order of the answers is that of the prompts, and an answer does not depend
        on the others.

        Prompts of one prefix are taken together, and a batch has at most as many prefixes as the
        budget holds. `decoding`: one for all, or one each.
        """
        written: list[list[int]] = [[] for _ in prompts]
        for i, ids in self.answers(prompts, names, decoding, batch_size, ops):
            written[i] = ids
        return written

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        decoding: Decoding | Sequence[Decoding],
        batch_size: int = 32,
        ops: str | Ops | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """As `generate_ids`, in the order in which they are done: the prompt's index, and what was
        written for it."""
        each = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        for what, given in (("name", names), ("decoding", each)):
            if len(given) != len(prompts):
                raise InputError(
                    f"{counted(len(given), what)} for {counted(len(prompts), 'prompt')}: give one "
                    "each"
                )
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        # all of them, before the first prompt is answered
        sizes = {n: 0 if n is None else self._size_within_budget(n) for n in set(names)}
        order = sorted(
            range(len(prompts)), key=lambda i: (repr(each[i]), names[i] or "", len(prompts[i]))
        )
        for rows in self._batches(order, names, each, batch_size, sizes):
            new = self._answer(
                [prompts[i] for i in rows], [names[i] for i in rows], each[rows[0]], ops, rows
            )
            yield from zip(rows, new, strict=True)

    def _batches(
        self,
        order: Sequence[int],
        names: Sequence[str | None],
        each: Sequence[Decoding],
        batch_size: int,
        sizes: Mapping[str | None, int],
    ) -> Iterator[list[int]]:
        """Rows of one decoding, at most `batch_size`, whose prefixes fit into the budget
        together."""
        rows: list[int] = []
        for i in order:
            needed = sum(sizes[name] for name in {names[j] for j in [*rows, i]})
            if rows and (
                len(rows) == batch_size or each[i] != each[rows[0]] or needed > self.budget
            ):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows

    def _answer(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | None],
        decoding: Decoding,
        ops: str | Ops | None,
        numbers: Sequence[int],
    ) -> list[list[int]]:
        """Of one batch. When it returns, nobody uses the prefixes any more."""
        distinct = list(dict.fromkeys(names))
        prefixes = [None if name is None else self[name] for name in distinct]
        which = [distinct.index(name) for name in names]
        return generate_ids(self.model, prompts, prefixes, which, decoding, ops, numbers)


def _holds_prefix(folder: Path) -> bool:
    return any((folder / name).exists() for name in artifact.TENSORS) or (folder / SAVING).exists()


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes with every save: files are replaced, never written into."""
    stamp: list[int] = []
    for name in artifact.FILES:
        try:
            found = (folder / name).stat()
        except OSError:
            stamp.append(0)
        else:
            stamp += [found.st_ino, found.st_mtime_ns, found.st_size]
    return tuple(stamp)
