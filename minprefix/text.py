"""Text and token ids: what a model does with its tokenizer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minprefix.errors import InputError, Note, brief, counted, listed, note, quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class EncodesText:
    """The half of a model that has a tokenizer, or none."""

    tokenizer: "Tokenizer | None"
    name: str
    #: a tokenizer, and the characters that a note has named so far; None if it can encode all
    lost: "tuple[Tokenizer, set[str] | None] | None" = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens added. A note names the characters that the
        tokenizer has no token for. Raises InputError without a tokenizer."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each, faster."""
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected text to encode, got {type(text).__name__}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(f"text {text!a} is not UTF-8: save or type it as UTF-8") from error
        with self.tokenizing() as tokenizer:
            ids = []
            for i in range(0, len(texts), 1000):  # Ctrl-C waits for one call of the library
                part = list(texts[i : i + 1000])
                found = tokenizer.encode_batch_fast(part, add_special_tokens=False)
                ids += [encoding.ids for encoding in found]
            self._note_what_is_lost(tokenizer, texts, ids)
            return ids

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_many` of texts to continue. Raises InputError for one of which no token is
        left."""
        prompts = self.encode_many(texts)
        for i, (text, ids) in enumerate(zip(texts, prompts, strict=True)):
            if text and not ids:
                raise InputError(f"prompt {i}: {self.nothing_left(text)}")
        return prompts

    def nothing_left(self, text: str) -> str:
        """The end of a sentence about a text that vanished."""
        return (
            f"{quoted(text)} leaves no token: the tokenizer of model {self.name!r} has none "
            "for its characters; give another text, or a model whose tokenizer has them"
        )

    def _note_what_is_lost(
        self, tokenizer: "Tokenizer", texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> None:
        """Each character once, with how often it was lost here."""
        from minprefix.storage.tokenizer import lost, says_all

        if self.lost is None or self.lost[0] is not tokenizer:
            self.lost = (tokenizer, None if says_all(tokenizer) else set())
        named = self.lost[1]
        if named is None:
            return
        counts = lost(tokenizer, texts, ids)
        new = [character for character, _ in counts.most_common() if character not in named]
        if new:
            named.update(new)
            n, total = sum(counts[character] for character in new), sum(map(len, texts))
            lost_of = f"{n} of the {counted(total, 'character')} that it read"
            note(
                f"the tokenizer of model {self.name!r} has no token for {listed(new)}: "
                f"{lost_of} {'is' if n == 1 else 'are'} lost"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        with self.tokenizing() as tokenizer:
            return tokenizer.decode(list(ids))

    @contextmanager
    def tokenizing(self) -> "Iterator[Tokenizer]":
        """The tokenizer. Raises InputError if there is none, and for whatever happens in it: a
        tokenizer.json may come from anyone, and one that the library cannot run makes its Rust
        code panic, which is no Exception."""
        if self.tokenizer is None:
            raise InputError(
                f"model {self.name!r} has no tokenizer: put tokenizer.json, or vocab.json and "
                "merges.txt, into its folder"
            )
        try:
            yield self.tokenizer
        except (KeyboardInterrupt, MemoryError, Note):  # a note, where warnings are errors
            raise
        except BaseException as error:
            raise InputError(
                f"the tokenizer of model {self.name!r} fails on this text ({brief(error)}): "
                "fetch its files again"
            ) from error

    def tokenizer_fingerprint(self) -> str | None:
        """See `minprefix.storage.fingerprint`. None without a tokenizer."""
        from minprefix.storage.fingerprint import tokenizer_fingerprint

        if self.tokenizer is None:
            return None
        with self.tokenizing() as tokenizer:
            return tokenizer_fingerprint(tokenizer)
