"""Decoding with a key/value cache: greedy, sampling, beam search; many prompts of different lengths
at once.

Attention does not tell the earlier tokens from a prefix: both are keys and values that a token
sees before itself. So the cache is a prefix that grows. It starts as the trained prefix, and each
step feeds one token per text through the same `forward` that training uses. There is no second code
path, and no second place for a position to be off by P.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from minprefix import ops as _ops
from minprefix.batch import Batch, one_each
from minprefix.errors import InputError, counted
from minprefix.gpt2 import BlockCache, Config, KeysValues, Stream, embedding, forward, head
from minprefix.method import Method
from minprefix.model import GPT2, check_same_place, operations, prepare
from minprefix.ops.contract import Ops
from minprefix.prefix import Prefix, Prefixes


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. The defaults are greedy.

    `temperature`: sample from softmax(logits / temperature), from the `top_k` likeliest tokens
    only, and from the fewest that hold `top_p` of the probability; both need a temperature. `seed`
    decides the draws; each text draws for itself, so its result does not depend on the others.
    `beams`: keep this many texts; in the end the best sum of log-probabilities /
    length^length_norm wins. `min_new_tokens`: no end token is chosen before. `forbidden`: token ids
    that are never chosen.
    """

    max_new_tokens: int = field(default=40, metadata={"help": "at most this many"})
    temperature: float | None = field(default=None, metadata={"help": "sample; greedy without it"})
    top_k: int | None = field(default=None, metadata={"help": "sample from the N likeliest tokens"})
    top_p: float | None = field(
        default=None, metadata={"help": "sample from the likeliest X of the probability"}
    )
    seed: int = field(default=0, metadata={"help": "decides what is sampled"})
    beams: int = field(default=1, metadata={"help": "beam search with N beams"})
    length_norm: float = field(
        default=1.0, metadata={"help": "of beam search: exponent of the length in a text's score"}
    )
    min_new_tokens: int = field(default=0, metadata={"help": "no end token before this many"})
    forbidden: tuple[int, ...] = field(
        default=(), metadata={"help": "token ids that are never chosen"}
    )

    def __post_init__(self) -> None:
        sampling = self.temperature is not None
        for wrong, sentence in (
            (
                self.max_new_tokens < 1,
                f"max_new_tokens is {self.max_new_tokens}: expected at least 1",
            ),
            (
                not 0 <= self.min_new_tokens <= self.max_new_tokens,
                f"min_new_tokens is {self.min_new_tokens}: expected 0 to max_new_tokens",
            ),
            (
                self.temperature is not None and not 0 < self.temperature < math.inf,
                f"temperature is {self.temperature}: expected a finite number above 0 "
                "(leave it out for greedy)",
            ),
            (
                self.top_k is not None and self.top_k < 1,
                f"top_k is {self.top_k}: expected at least 1",
            ),
            (
                self.top_p is not None and not 0 < self.top_p <= 1,
                f"top_p is {self.top_p}: expected above 0, at most 1",
            ),
            (
                not sampling and (self.top_k is not None or self.top_p is not None),
                "top_k and top_p restrict sampling: give a temperature as well",
            ),
            (self.seed < 0, f"seed is {self.seed}: expected 0 or more"),
            (
                not math.isfinite(self.length_norm),
                f"length_norm is {self.length_norm}: expected a finite number",
            ),
            (self.beams < 1, f"beams is {self.beams}: expected at least 1"),
            (self.beams > 1 and sampling, "beam search does not sample: leave out temperature"),
        ):
            if wrong:
                raise InputError(sentence)


def generate(
    model: GPT2,
    prompts: Sequence[str],
    prefix: Prefixes | Method = None,
    which: Sequence[int] | None = None,
    ops: str | Ops | None = None,
    **decoding: object,
) -> list[str]:
    """The text that follows each prompt, up to an end token of the model or `max_new_tokens`.

    `which`: for a list of prefixes, the index of the one that each prompt sees; None in the list is
    no prefix. All other arguments are fields of `Decoding`. Raises InputError for bad settings, an
    empty prompt, and one that leaves too few positions.
    """
    if isinstance(prompts, str):
        raise InputError("prompts is one text: give a list of texts")
    unknown = set(decoding) - set(Decoding.__dataclass_fields__)
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {min(unknown)!r}")
    ids = model.encode_prompts(prompts)
    new = generate_ids(model, ids, prefix, which, Decoding(**decoding), ops)  # type: ignore[arg-type]
    return [model.decode(row) for row in new]


def generate_ids(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    prefix: Prefixes | Method = None,
    which: Sequence[int] | None = None,
    decoding: Decoding | None = None,
    ops: str | Ops | None = None,
    numbers: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Token ids in, the new token ids out, the end token left off.

    `numbers`: one for each prompt, 0, 1, 2, ... by default. The number of a text seeds its draws:
    texts that are decoded a few at a time keep the numbers that they have among all.
    `limits`: one for each prompt, how many new tokens it may get, where that is less than
    `max_new_tokens`.
    """
    if isinstance(prefix, Method):
        if which is not None:
            raise InputError(f"which names prefixes, and {prefix.name} is none: leave it out")
        check_same_place(model, prefix)
        return prefix.generate_ids(model, prompts, decoding, ops, numbers, limits)
    decoding = decoding or Decoding()
    n = len(prompts)
    most = _limits(limits, n, decoding)
    drawn = one_each("numbers", range(n) if numbers is None else numbers, n, "prompt")
    if min(drawn, default=0) < 0:
        raise InputError(f"numbers holds {min(drawn)}: expected whole numbers from 0")
    if not len(prompts):
        return []
    for i, ids in enumerate(prompts):
        if len(ids) == 0:
            raise InputError(f"prompt {i} is empty: give at least one token")
    for token in decoding.forbidden:
        if not 0 <= token < model.config.vocab_size:
            raise InputError(
                f"forbidden token {token} lies outside the vocabulary, 0 to "
                f"{model.config.vocab_size - 1}"
            )
    ends = model.config.end_tokens
    unreachable = set(ends) if decoding.min_new_tokens else set()
    if len(unreachable | set(decoding.forbidden)) == model.config.vocab_size:
        raise InputError(
            "every token is forbidden or kept out by min_new_tokens: allow at least one"
        )
    given = 1 if prefix is None or isinstance(prefix, Prefix) else len(prefix)
    if which is None and given > 1:
        raise InputError(f"{given} prefixes were given: say by `which` which one each prompt sees")
    if which is not None and prefix is None:
        raise InputError("which names prefixes, and no prefix was given")
    if which is not None:
        which = one_each("which", which, n, "prompt")
    batch = Batch.pack(prompts, prefix=which)
    own = operations(model, ops)
    texts, logits = Texts.start(model, batch, prefix, most, own)
    if decoding.beams > 1:
        return _beam_search(texts, logits, decoding, ends, most)
    return _one_by_one(texts, logits, decoding, ends, most, drawn)


def room(config: Config, start: int, length: int) -> int:
    """How many new tokens a prompt of this length leaves positions for, its first token at position
    `start`. Below 1 the prompt itself does not fit."""
    return config.room(start) - length


def no_room(config: Config, start: int, length: int, decoding: Decoding) -> str | None:
    """The sentence that a prompt leaves no room for a new token, or for fewer than
    `min_new_tokens`; None where there is room."""
    left, needed = room(config, start, length), max(1, decoding.min_new_tokens)
    if left >= needed:
        return None
    return (
        f"{counted(length, 'token')} from position {start} leave room for {max(0, left)} new ones "
        f"of the model's {config.n_positions} positions, and {needed} "
        f"{'is' if needed == 1 else 'are'} to be written"
    )


def _limits(limits: Sequence[int] | None, n: int, decoding: Decoding) -> list[int]:
    """How many new tokens each of n texts may get, none more than `max_new_tokens`."""
    if limits is None:
        return [decoding.max_new_tokens] * n
    given = one_each("limits", limits, n, "prompt")
    least = max(1, decoding.min_new_tokens)
    if min(given, default=least) < least:
        raise InputError(
            f"limits holds {min(given)}: expected at least {least}"
            + (", min_new_tokens" if decoding.min_new_tokens else "")
        )
    return [min(limit, decoding.max_new_tokens) for limit in given]


@dataclass
class Texts:
    """S texts being written: what each has seen, as keys and values."""

    model: GPT2
    ops: Ops
    kv: np.ndarray  # (room, L, 2, NH, capacity, hs): each text lies in one of the first axis
    prompt_in: np.ndarray  # (room,): which prompt lies there, -1 for none
    prompt_end: np.ndarray  # (prompts,): how many slots it fills with its prefix, in every layer
    at: np.ndarray  # (S,): where in kv each text lies
    seen: np.ndarray  # (S, L): how many slots are filled; a layer without prefix has P fewer
    position: np.ndarray  # (S,): of the next token

    @classmethod
    def start(
        cls, model: GPT2, batch: Batch, prefix: Prefixes, limits: int | Sequence[int], ops: Ops
    ) -> "tuple[Texts, np.ndarray]":
        """Feed the prompts; `limits`: how many new tokens all of them, or each, may get. -> the
        texts, and (S, V) logits of each first new token."""
        cfg, most = model.config, np.broadcast_to(limits, len(batch))  # (S,)
        stream = prepare(model, batch, prefix)
        last = batch.offsets[1:] - 1  # (S,) the row of each prompt's last token
        ends = _ops.to(stream.positions, "numpy")[last]  # (S,) its position
        for b, end in enumerate(ends):
            # the last new token is chosen but not fed, so it needs no position
            if int(end) + most[b] > cfg.n_positions:
                raise InputError(
                    f"prompt {b} has {counted(batch.lengths[b], 'token')} and ends at position "
                    f"{end}: with {counted(most[b], 'new token')} it needs more than the model's "
                    f"{cfg.n_positions} positions; shorten it or lower max_new_tokens"
                )
        rows = _ops.to(last, model.backend)
        w, past = model.weights, stream.past
        x, blocks = forward(embedding(stream, w, ops), stream, w, cfg, ops, rows=rows)
        filled = np.array([[layer[b][0].shape[1] for layer in past] for b in range(len(batch))])
        capacity = int((filled.max(axis=1) + batch.lengths + most).max())
        prompt_end = filled.min(axis=1) + batch.lengths
        room = (len(batch), cfg.n_layer, 2, cfg.n_head, capacity, cfg.head_size)
        kv, own = np.zeros_like(x, shape=room), np.arange(len(batch))
        texts = cls(model, ops, kv, own, prompt_end, own, filled, ends + 1)
        for i, layer in enumerate(past):
            for b, (k, v) in enumerate(layer):
                kv[b, i, 0, :, : k.shape[1]] = k
                kv[b, i, 1, :, : v.shape[1]] = v
        texts._append(blocks, batch.offsets)
        return texts, head(x, w, cfg, ops)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """One more token for each text, tokens (S,) -> (S, V) logits of the one after it."""
        S, w, cfg = len(tokens), self.model.weights, self.model.config
        offsets = np.arange(S + 1)
        past = [[self._past(s, i) for s in range(S)] for i in range(cfg.n_layer)]
        tokens, position = (_ops.to(a, self.model.backend) for a in (tokens, self.position))
        stream = Stream(tokens, position, offsets, past)
        x, blocks = forward(embedding(stream, w, self.ops), stream, w, cfg, self.ops)  # (S, C)
        self._append(blocks, offsets)
        self.position = self.position + 1
        return head(x, w, cfg, self.ops)

    def take(self, rows: Sequence[int]) -> "Texts":
        """These texts only, in this order; a text may be taken twice (each then has its own cache).
        The others' memory is used again: take from a `Texts` once, then drop it.

        The first copy of a text stays where it is. The next ones go where a text of the same prompt
        was, if one left: there, only what came after the prompt has to be copied.
        """
        kv, prompt_in, at = self.kv, self.prompt_in.copy(), self.at[list(rows)]
        again = [j for j, row in enumerate(rows) if row in rows[:j]]
        free = sorted(set(range(len(kv))) - set(at.tolist()))
        if len(again) > len(free):
            room = len(kv) + len(again) - len(free)
            free += range(len(kv), room)
            kv = np.zeros_like(kv, shape=(room, *kv.shape[1:]))
            kv[: len(self.kv)] = self.kv
            prompt_in = np.pad(prompt_in, (0, room - len(prompt_in)), constant_values=-1)
        for j in again:
            source, prompt = at[j], prompt_in[at[j]]
            to = next((a for a in free if prompt_in[a] == prompt), free[0])
            new = self.prompt_end[prompt] if prompt_in[to] == prompt else 0
            end = self.seen[rows[j]].max()
            kv[to, ..., new:end, :] = kv[source, ..., new:end, :]
            free.remove(to)
            prompt_in[to], at[j] = prompt, to
        return replace(
            self,
            kv=kv,
            prompt_in=prompt_in,
            at=at,
            seen=self.seen[rows],
            position=self.position[rows],
        )

    def _past(self, s: int, i: int) -> KeysValues:
        k, v = self.kv[self.at[s], i, :, :, : self.seen[s, i]]
        return k, v

    def _append(self, blocks: Sequence[BlockCache], offsets: np.ndarray) -> None:
        lengths = np.diff(offsets)
        text = np.repeat(np.arange(len(lengths)), lengths)  # (N,) the text of each token
        new = np.arange(len(text)) - offsets[text]  # (N,) its place among the text's new tokens
        where = (self.at[text], self.seen[text].T + new)  # (N,), (L, N)
        at, slots = (_ops.to(a, self.model.backend) for a in where)
        for i, block in enumerate(blocks):
            self.kv[at, i, 0, :, slots[i]] = block.attn.attention.k
            self.kv[at, i, 1, :, slots[i]] = block.attn.attention.v
        self.seen = self.seen + lengths[:, None]


def _allowed(
    logits: np.ndarray, decoding: Decoding, ends: tuple[int, ...], n_new: int
) -> np.ndarray:
    """(S, V): the logits themselves, real, made -inf where a token may not be chosen as new token
    number n_new (from 0)."""
    logits = logits.real  # complex ones are for derivatives; their imaginary part is 0
    if decoding.forbidden:
        logits[:, list(decoding.forbidden)] = -np.inf
    if ends and n_new < decoding.min_new_tokens:
        logits[:, list(ends)] = -np.inf
    return logits


def _one_by_one(
    texts: Texts,
    logits: np.ndarray,
    decoding: Decoding,
    ends: tuple[int, ...],
    limits: list[int],
    numbers: list[int],
) -> list[list[int]]:
    """Greedy decoding and sampling: a text leaves when it ends or has reached its limit."""
    new: list[list[int]] = [[] for _ in range(len(logits))]
    rngs = [np.random.default_rng([decoding.seed, number]) for number in numbers]
    alive = list(range(len(logits)))
    for n_new in range(decoding.max_new_tokens):
        logits = _allowed(logits, decoding, ends, n_new)
        if decoding.temperature is None:
            chosen = _ops.to(logits.argmax(axis=1), "numpy")
        else:
            logits = _ops.to(logits, "numpy")
            chosen = np.array(
                [_sample(row, decoding, rngs[s]) for row, s in zip(logits, alive, strict=True)]
            )
        going = [j for j in range(len(alive)) if chosen[j] not in ends]
        for j in going:
            new[alive[j]].append(int(chosen[j]))
        stay = [j for j in going if n_new + 1 < limits[alive[j]]]
        alive = [alive[j] for j in stay]
        if not alive:
            break
        texts = texts.take(stay)
        logits = texts.feed(chosen[stay])
    return new


def _sample(logits: np.ndarray, decoding: Decoding, rng: "np.random.Generator") -> int:
    """One token from logits (V,). top_p is taken after temperature and top_k (Holtzman et al.,
    2020: the smallest set whose probability reaches top_p)."""
    assert decoding.temperature is not None
    order = _likeliest(logits, decoding.top_k or len(logits))
    scores = logits[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: all but the likeliest go to -inf
        p = np.exp((scores - scores[0]) / decoding.temperature)
    p /= p.sum()
    if decoding.top_p is not None:
        keep = np.searchsorted(np.cumsum(p), decoding.top_p) + 1
        order, p = order[:keep], p[:keep] / p[:keep].sum()
    return int(rng.choice(order, p=p))


def _beam_search(
    texts: Texts, logits: np.ndarray, decoding: Decoding, ends: tuple[int, ...], limits: list[int]
) -> list[list[int]]:
    """For each prompt the `beams` best continuations of its live texts survive each step. One that
    ends leaves the beam and keeps its place, so one beam is greedy decoding. The texts of a prompt
    that has reached its limit leave together."""
    S = len(logits)
    owner = list(range(S))  # which prompt each live text belongs to
    ids: list[list[int]] = [[] for _ in range(S)]
    total = np.zeros(S)  # sum of log-probabilities of each live text
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(S)]
    for n_new in range(decoding.max_new_tokens):
        logits = _ops.to(_allowed(logits, decoding, ends, n_new), "numpy")
        found: list[list[tuple[float, int, int]]] = [[] for _ in range(S)]  # score, row, token
        for row, s in enumerate(owner):
            tokens = _likeliest(logits[row], decoding.beams - len(finished[s]))
            scores = total[row] + _log_probabilities(logits[row], tokens)
            found[s] += zip(scores.tolist(), [row] * len(tokens), tokens.tolist(), strict=True)
        best: list[tuple[float, int, int]] = []
        for s in range(S):
            # highest first; of equal ones the first text, then the lowest token
            found[s].sort(key=lambda f: (-f[0], f[1], f[2]))
            for score, row, token in found[s][: decoding.beams - len(finished[s])]:
                if token in ends:
                    norm = score / (n_new + 1) ** decoding.length_norm
                    finished[s].append((norm, ids[row]))
                else:
                    best.append((score, row, token))
        stay: list[tuple[float, int, int]] = []
        for score, row, token in best:
            if n_new + 1 < limits[owner[row]]:
                stay.append((score, row, token))
            else:
                norm = score / (n_new + 1) ** decoding.length_norm
                finished[owner[row]].append((norm, [*ids[row], token]))
        total = np.array([score for score, _, _ in stay])
        owner = [owner[row] for _, row, _ in stay]
        ids = [[*ids[row], token] for _, row, token in stay]
        if not ids:
            break
        texts = texts.take([row for _, row, _ in stay])
        logits = texts.feed(np.array([token for _, _, token in stay]))
    return [max(f, key=lambda pair: pair[0])[1] for f in finished]


def _log_probabilities(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """log softmax of logits (V,) at these tokens (n,), in float64."""
    top = logits.max()
    total = np.exp(logits - top).sum(dtype=np.float64)
    return logits[tokens].astype(np.float64) - top - np.log(total)


#: the number of groups that `_likeliest` deals the vocabulary into
GROUPS = 512


def _likeliest(logits: np.ndarray, n: int) -> np.ndarray:
    """The n tokens of highest logit (V,) that are not ruled out, highest first; of equal ones the
    lowest first.

    It does not sort the whole vocabulary. The vocabulary is dealt into groups: at least n tokens
    reach the n-th highest of the groups' maxima, so only those need to be sorted.
    """
    least = np.finfo(logits.dtype).min
    if n <= GROUPS <= len(logits):
        whole = len(logits) // GROUPS * GROUPS
        maxima = logits[:whole].reshape(-1, GROUPS).max(axis=0)
        least = max(least, np.partition(maxima, -n)[-n])
    tokens = np.flatnonzero(logits >= least)
    return tokens[np.argsort(-logits[tokens], kind="stable")[:n]]
