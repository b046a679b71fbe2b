"""A model's tokenizer: from tokenizer.json, or from vocab.json and merges.txt, with what the files
beside them add to it.

The rules are those of transformers' GPT2Tokenizer. `tokenizer_config.json` names special tokens and
may list tokens with their ids (`added_tokens_decoder`); a file without that list leaves it to
`special_tokens_map.json` and `added_tokens.json`, as older versions wrote them. A named token that
has no id gets the next one. An id that a file gives is kept even where it leaves a gap, which
transformers' fast tokenizers close, so that the token finds the row that was trained for it.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minprefix.errors import InputError, brief, note, quoted
from minprefix.storage.reading import LARGEST_JSON, inside, read_json, read_text, unexpected
from minprefix.storage.writing import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

WHOLE, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
CONFIG, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
#: every file of a tokenizer
FILES = (WHOLE, VOCAB, MERGES, CONFIG, NAMES, ADDED)
#: the special tokens that transformers knows, in the order in which new ones get their ids
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: GPT2Tokenizer's special token
END = "<|endoftext|>"
#: the bound on ids in a vocabulary with gaps; no GPT-2 has as many tokens
MOST = 2**20
#: classes that take tokenizer.json as it is; GPT2Tokenizer overrides a few settings
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
#: a tokenizer must encode and decode this; better to fail here than in the middle of the work
PROBE = (
    bytes(range(32, 127)).decode()
    + "\t\n  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \u00e4\u65e5\U0001f642 don't"
)


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    """None if the folder has neither tokenizer.json nor vocab.json with merges.txt.

    Raises InputError for a tokenizer that cannot be read or cannot encode and decode a short text,
    and for files that contradict each other.
    """
    whole, vocab, merges = (inside(folder, name, "the tokenizer") for name in FILES[:3])
    ours = not whole.exists()
    if ours and vocab.exists() != merges.exists():
        there, lost = (VOCAB, MERGES) if vocab.exists() else (MERGES, VOCAB)
        raise InputError(f"{str(folder)!r} has {there} but no {lost}: the tokenizer needs both")
    if ours and not vocab.exists():
        return None
    try:
        beside = read_beside(folder)
        blank = beside.flag("add_prefix_space") or False
        tokenizer = _bpe(vocab, merges, blank) if ours else _whole(whole, beside)
        tokenizer = _with_tokens(tokenizer, beside, folder, ours)
        tokenizer.no_truncation()  # a stored limit would drop text silently
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = beside.flag("split_special_tokens") or False
        tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids)
    except (InputError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the library raises bare Exception, and Rust's panics
        what = f"the tokenizer in {str(folder)!r} cannot be read ({brief(error)})"
        raise InputError(f"{what}: fetch its files again") from error
    _say_what_is_not_done(tokenizer, beside, folder, ours)
    return tokenizer


def read_as_before(folder: Path) -> "Tokenizer | None":
    """The tokenizer as version 0.1.0 read it, without the files beside it: prefixes of that version
    record its fingerprint."""
    from tokenizers import Tokenizer

    if (folder / WHOLE).exists():
        return Tokenizer.from_file(str(folder / WHOLE))
    if not (folder / VOCAB).exists():
        return None
    tokenizer = _bpe(folder / VOCAB, folder / MERGES, False)
    tokenizer.add_special_tokens([END])
    return tokenizer


def end_token(folder: Path, tokenizer: "Tokenizer | None") -> int | None:
    """The id of the token that the files beside the tokenizer name as `eos_token`."""
    named = read_beside(folder).named.get("eos_token")
    return tokenizer.token_to_id(named.content) if tokenizer and named else None


#: stands for the blank before a word in some tokenizers
WORD = "\u2581"
#: a text that needs every byte that UTF-8 has
ALPHABET = "".join(
    map(chr, [*range(192), *range(192, 2048, 64), 2048, *range(4096, 65536, 4096), 65536])
) + "".join(map(chr, range(2**18, 2**20 + 1, 2**18)))


def says_all(tokenizer: "Tokenizer") -> bool:
    """Whether the tokenizer has tokens for every text, as byte-level BPE has."""
    try:
        ids = tokenizer.encode(ALPHABET, add_special_tokens=False).ids
        return not lost(tokenizer, [ALPHABET], [ids])
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException:  # the library's answer to a word without a token, or a panic
        return False


def lost(
    tokenizer: "Tokenizer", texts: Sequence[str], ids: Sequence[Sequence[int]]
) -> "Counter[str]":
    """The characters of the texts that their tokens do not hold, counted. A character that the
    normalizer replaces is not lost, nor is a blank where tokens are words."""
    from tokenizers import decoders, pre_tokenizers

    unknown = getattr(tokenizer.model, "unk_token", None)
    i_unknown = None if unknown is None else tokenizer.token_to_id(unknown)
    first, decoder, normalizer = tokenizer.pre_tokenizer, tokenizer.decoder, tokenizer.normalizer
    if decoder is None and isinstance(first, pre_tokenizers.ByteLevel):
        decoder = decoders.ByteLevel()
    counts: Counter[str] = Counter()
    for text, row in zip(texts, ids, strict=True):
        tokens = [tokenizer.id_to_token(i) or "" for i in row if i != i_unknown]
        decoded = decoder.decode(tokens) if decoder else "".join(tokens)
        held = Counter(text if decoder or first is None else text.replace(" ", ""))
        missing = held - Counter(decoded)
        if missing and normalizer is not None:
            read = Counter(normalizer.normalize_str(text).replace(WORD, "")) - Counter(decoded)
            missing = min(missing, read, key=Counter.total)
        counts += missing
    return counts


def write_tokenizer(tokenizer: "Tokenizer | None", folder: Path) -> None:
    """Write tokenizer.json, and beside it only the settings without which transformers would read
    it differently. Removes the files of another tokenizer that stood here before."""
    from tokenizers.pre_tokenizers import ByteLevel

    for name in FILES:
        if name != WHOLE or tokenizer is None:
            (folder / name).unlink(missing_ok=True)
    if tokenizer is None:
        return
    write_text(folder / WHOLE, tokenizer.to_str(pretty=True))
    first = tokenizer.pre_tokenizer
    plain = END not in {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    settings = {
        "add_prefix_space": isinstance(first, ByteLevel) and first.add_prefix_space,
        "split_special_tokens": tokenizer.encode_special_tokens,
        # GPT2Tokenizer would make END a special token
        "tokenizer_class": AS_IT_IS[0] if plain and tokenizer.token_to_id(END) is not None else "",
    }
    if any(settings.values()):
        write_json(folder / CONFIG, {k: v for k, v in settings.items() if v})


class Beside(NamedTuple):
    """The files beside a tokenizer: settings, special tokens by their roles (None for a
    role without a token) and without a role, and tokens by their ids."""

    path: Path
    settings: dict[str, Any]
    named: "dict[str, AddedToken | None]"
    extra: "list[AddedToken]"
    numbered: "dict[int, AddedToken]"

    def flag(self, key: str) -> bool | None:
        value = self.settings.get(key)
        if value is not None and not isinstance(value, bool):
            raise unexpected(self.path, key, value, "true, false or null")
        return value

    def special(self, ours: bool) -> "list[AddedToken]":
        """All special tokens; `ours`: with those that GPT2Tokenizer adds by itself."""
        from tokenizers import AddedToken

        ends = dict.fromkeys(ROLES[:3], AddedToken(END, special=True) if ours else None)
        named = dict.fromkeys(ROLES) | ends | self.named
        return [token for token in named.values() if token is not None] + self.extra


def read_beside(folder: Path) -> Beside:
    """Raises InputError for a malformed file, with its name."""
    path, beside, source = (inside(folder, name, "part of the tokenizer") for name in FILES[3:])
    settings = _optional(path)
    named, extra = _special_tokens(path, settings)
    given: list[tuple[Any, AddedToken]]  # ids, which may be anything yet, and their tokens
    if (listed := settings.get("added_tokens_decoder")) is not None:
        if not isinstance(listed, dict):
            raise unexpected(path, "added_tokens_decoder", listed, "tokens by their ids")
        source = path
        given = [
            (int(i) if re.fullmatch("[0-9]{1,10}", i) else i, _token(path, f"token {i}", value))
            for i, value in listed.items()
        ]
    else:
        more_named, more_extra = _special_tokens(beside, _optional(beside))
        named, extra = named | more_named, extra + more_extra
        special = {token.content for token in [*named.values(), *extra] if token is not None}
        given = [
            (i, _token(source, "a token", {"content": text, "special": text in special}))
            for text, i in _optional(source).items()
        ]
    numbered: dict[int, AddedToken] = {}
    for i, token in given:
        _check_id(source, token.content, i)
        if i in numbered:
            both = f"{quoted(numbered[i].content)} and {quoted(token.content)}"
            raise _damaged(source, f"{both} have one id, {i}")
        numbered[i] = token
    return Beside(path, settings, named, extra, numbered)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, "part of the tokenizer") if path.exists() else {}


def _special_tokens(
    path: Path, raw: dict[str, Any]
) -> "tuple[dict[str, AddedToken | None], list[AddedToken]]":
    """By their roles, and those without one."""
    named: dict[str, AddedToken | None] = {}
    for key, value in raw.items():
        if key in ROLES and value is None:
            named[key] = None
        elif key in ROLES or (key.endswith("_token") and isinstance(value, str | dict)):
            named[key] = _token(path, key, value, special=True)
    extra = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = raw.get(key) or []
        if isinstance(listed, dict):
            named |= {name: _token(path, key, value, True) for name, value in listed.items()}
        elif isinstance(listed, list):
            extra += [_token(path, key, value, True) for value in listed]
        else:
            raise unexpected(path, key, listed, "a list of tokens")
    return named, extra


def _token(path: Path, what: str, value: Any, special: bool = False) -> "AddedToken":
    """A token that a file gives as its text, or as an object of the library's fields."""
    from tokenizers import AddedToken

    given = {"content": value} if isinstance(value, str) else value
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    fields = {k: v for k, v in given.items() if k != "__type"} if isinstance(given, dict) else {}
    text = fields.get("content")
    others = {k: v for k, v in fields.items() if k != "content"}
    wrong = set(others) - set(flags) or any(type(v) is not bool for v in others.values())
    if not isinstance(text, str) or not text or wrong:
        expected = f"its text, or an object with content and some of {', '.join(flags)}"
        raise unexpected(path, what, value, expected)
    return AddedToken(**fields | ({"special": True} if special else {}))


def _check_id(path: Path, token: str, i: Any) -> None:
    if type(i) is not int or not 0 <= i < 2**32:
        wrong = f"token {quoted(token)} has id {quoted(i)}: expected a whole number from 0"
        raise _damaged(path, wrong)


def _damaged(where: object, wrong: str) -> InputError:
    return InputError(f"{where}: {wrong}; the file is damaged, fetch it again")


def _whole(path: Path, beside: Beside) -> "Tokenizer":
    from tokenizers import Tokenizer

    raw = read_json(path, "the tokenizer")
    if '"type": "Precompiled"' in json.dumps(raw):
        raise InputError(
            f"{path} has a 'Precompiled' normalizer, which no GPT-2 has and which can take any "
            "amount of memory: give the model's own tokenizer"
        )
    _set_prefix_space(raw, path, beside)
    tokenizer = Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))
    # the library closes the gap that such an id leaves
    listed = {token["content"]: token["id"] for token in raw.get("added_tokens") or []}
    kept = all(tokenizer.token_to_id(content) == i for content, i in listed.items())
    vocab = raw["model"]["vocab"]
    if kept or not isinstance(vocab, dict):
        return tokenizer
    taken = set(vocab.values())
    gaps = {c: i for c, i in listed.items() if c not in vocab and i not in taken}
    return _placed(tokenizer, gaps, path)


def _set_prefix_space(raw: dict[str, Any], path: Path, beside: Beside) -> None:
    """Apply `add_prefix_space` of tokenizer_config.json in the cases in which transformers does."""
    wanted = beside.flag("add_prefix_space")
    part = raw.get("pre_tokenizer")
    if isinstance(part, dict) and part.get("type") == "Sequence":
        part = next(iter(part.get("pretokenizers") or []), None)
    level = part if isinstance(part, dict) and part.get("type") == "ByteLevel" else {}
    if wanted is None or wanted == level.get("add_prefix_space", False):
        return
    if level and beside.settings.get("tokenizer_class") not in AS_IT_IS:
        level["add_prefix_space"] = wanted
    else:
        why = f"which has no effect: {path.name} decides how a text begins"
        note(f"{beside.path}: add_prefix_space is {wanted}, {why}")


def _bpe(vocab: Path, merges: Path, blank: bool) -> "Tokenizer":
    """Byte-level BPE from GPT-2's own two files. The library itself would read them with less care:
    it skips ids that are no numbers, and truncates large ones."""
    from tokenizers import ByteLevelBPETokenizer

    ids = read_json(vocab, "the tokenizer's vocabulary")
    for token, i in ids.items():
        _check_id(vocab, token, i)
    if len(set(ids.values())) < len(ids):
        raise _damaged(vocab, "two tokens have one id")
    pairs = []
    lines = read_text(merges, "the tokenizer's merges", LARGEST_JSON).split("\n")
    for n, line in enumerate(lines, 1):
        pair = tuple(line.split(" "))
        if line.startswith("#version") or (not line and n == len(lines)):
            continue
        if len(pair) != 2 or not all(pair):
            wrong = f"{quoted(line)}: expected two tokens, a blank between them"
            raise _damaged(f"{merges}, line {n}", wrong)
        pairs.append(pair)
    return ByteLevelBPETokenizer(ids, pairs, add_prefix_space=blank)._tokenizer


def _with_tokens(tokenizer: "Tokenizer", beside: Beside, folder: Path, ours: bool) -> "Tokenizer":
    """Add the tokens with ids, then the special tokens that have none yet."""
    added = tokenizer.get_added_tokens_decoder()
    known = {token.content for token in [*added.values(), *beside.numbered.values()]}
    special = beside.special(ours)
    more: dict[str, AddedToken] = {}
    for token in special:
        if token.content not in known:
            more.setdefault(token.content, token)
    if not more and not beside.numbered:
        return tokenizer
    held = tokenizer.get_vocab(with_added_tokens=True)
    of_id = {i: content for content, i in held.items()}
    numbered = dict(beside.numbered)
    for i, token in numbered.items():
        if held.get(token.content, i) != i or of_id.get(i, token.content) != token.content:
            was = held.get(token.content, of_id.get(i))
            raise InputError(
                f"{folder}: a file beside the tokenizer gives {quoted(token.content)} the id {i}, "
                f"and the tokenizer itself has {quoted(was)} for it: fetch both again"
            )
    for content, token in more.items():
        numbered[held.get(content, max([*of_id, *numbered], default=-1) + 1)] = token
    names = {token.content for token in special}
    for token in numbered.values():
        token.special = token.special or token.content in names
    gaps = {token.content: i for i, token in numbered.items() if i not in of_id}
    end = max(of_id, default=-1) + 1
    if gaps and (end > len(of_id) or sorted(gaps.values()) != [*range(end, end + len(gaps))]):
        tokenizer = _placed(tokenizer, gaps, folder)
    tokenizer.add_tokens([t for i, t in sorted(numbered.items()) if repr(t) != repr(added.get(i))])
    return tokenizer


def _placed(tokenizer: "Tokenizer", gaps: dict[str, int], where: Path) -> "Tokenizer":
    """The tokenizer with these tokens at these ids. The library numbers added tokens itself; one
    keeps its id only if it is in the vocabulary (where no merge makes it)."""
    from tokenizers import Tokenizer

    largest = max([*tokenizer.get_vocab().values(), *gaps.values()])
    if largest >= MOST:  # the library would count through all ids below it
        wrong = (
            f"a token has id {largest}, and ids before it are missing: expected ids below {MOST}"
        )
        raise _damaged(where, wrong)
    raw = json.loads(tokenizer.to_str())
    if not isinstance(raw["model"]["vocab"], dict):
        raise InputError(
            f"{where}: token {quoted(min(gaps))} has id {gaps[min(gaps)]}, which is not the next "
            f"one: a {raw['model']['type']} vocabulary cannot have a gap"
        )
    raw["model"]["vocab"] |= gaps
    return Tokenizer.from_str(json.dumps(raw, ensure_ascii=False))


def _say_what_is_not_done(tokenizer: "Tokenizer", beside: Beside, folder: Path, ours: bool) -> None:
    around = [key for key in ("add_bos_token", "add_eos_token") if beside.flag(key)] if ours else []
    if around or tokenizer.num_special_tokens_to_add(False):
        asks = around[0] if around else "post_processor"
        note(
            f"{folder}: the tokenizer's {asks} asks for special tokens around every text: "
            "minprefix adds none, so write them into the text if the model needs them"
        )
    if ours and beside.flag("do_lower_case"):
        note(f"{beside.path}: do_lower_case has no effect on a GPT-2 tokenizer")
    made_by = beside.settings.get("tokenizer_class")
    if ours and made_by not in (None, "GPT2Tokenizer", "GPT2TokenizerFast", *AS_IT_IS):
        note(
            f"{beside.path}: tokenizer_class is {quoted(made_by)}: {VOCAB} and {MERGES} are "
            f"read as GPT-2's byte-level BPE; if they are something else, give {WHOLE}"
        )
