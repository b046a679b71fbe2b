from collections import Counter

import numpy as np

from minprefix.evaluate import corpus_scores
from minprefix.generate import _likeliest, _log_probabilities
from minprefix.ops import reference
from tests.exercises import lazy, wrong


@wrong("temperature_probabilities", says="Divide by it")
def hotter_is_sharper(logits, temperature):
    scaled = logits * temperature
    e = np.exp(scaled - scaled.max())
    return e / e.sum()


@wrong("temperature_probabilities", says="Divide inside of exp")
def divided_behind_exp(logits, temperature):
    e = np.exp(logits - max(logits)) / temperature
    p = e / np.sum(e)
    return p


@lazy("temperature_probabilities", says="of the package, and ours does not")
def softmax_of_the_package(logits, temperature):
    targets = np.zeros(1, dtype=int)
    reference.cross_entropy(logits[None] / temperature, targets, np.ones(1))
    e = np.exp(logits / temperature - np.max(logits / temperature))
    return e / e.sum()


@wrong("top_p_set", says="Keep one more")
def below_the_limit(p, top_p):
    order = np.argsort(-p)
    kept = order[np.cumsum(p[order]) < top_p]
    share = p[kept] / p[kept].sum()
    return kept, share


@wrong("top_p_set", says="do not sum to 1")
def not_normalised(p, top_p):
    order = np.argsort(-p, kind="stable")
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    return kept, p[kept]


@lazy("top_p_set", says="calls generate._likeliest of the package")
def sorted_by_the_package(p, top_p):
    order = _likeliest(p, len(p))
    kept = order[: (np.cumsum(p[order]) < top_p).sum() + 1]
    return kept, p[kept] / p[kept].sum()


@wrong("draw", says="Count the ends that are at or below u")
def an_end_belongs_to_its_piece(p, u):
    return int(np.searchsorted(np.cumsum(p), u))


@wrong("draw", says="This is greedy")
def the_likeliest(p, u):
    return int(np.argmax(p))


@lazy("draw", says="draw: what it returns is off by")
def a_new_random_number(p, u):
    return int(np.random.default_rng(0).choice(len(p), p=p))


@wrong("sequence_logprob", says="Row i predicts token i + 1")
def the_row_it_stands_in(logits, ids, start):
    total = 0.0
    for row, token in zip(logits[start:], ids[start:], strict=True):
        top = row.max()
        total += row[token] - top - np.log(np.exp(row - top).sum())
    return total


@wrong("sequence_logprob", says="The logarithm of a product is the sum")
def mean_of_the_tokens(logits, ids, start):
    rows = logits[start - 1 : -1]
    shifted = rows - rows.max(axis=1)[:, None]
    logp = shifted - np.log(np.exp(shifted).sum(axis=1))[:, None]
    return np.mean([logp[i, token] for i, token in enumerate(ids[start:])])


@lazy("sequence_logprob", says="calls generate._log_probabilities of the package")
def of_the_package(logits, ids, start):
    return sum(
        _log_probabilities(logits[t - 1], np.array([ids[t]]))[0] for t in range(start, len(ids))
    )


@wrong("beam_step", says="Add them to each row")
def without_what_was_before(totals, logp, beams):
    best = np.argsort(-logp.ravel(), kind="stable")[:beams]
    return best // logp.shape[1], best % logp.shape[1], logp.ravel()[best]


@wrong("beam_step", says="divide by V")
def rows_by_the_number_of_texts(totals, logp, beams):
    extended = logp + totals.reshape(-1, 1)
    best = np.argsort(-extended.ravel(), kind="stable")[:beams]
    rows = best // len(logp)
    tokens = best % len(logp)
    return rows, tokens, extended.ravel()[best]


@lazy("beam_step", says="calls generate._likeliest of the package")
def best_of_the_package(totals, logp, beams):
    extended = totals[:, None] + logp
    best = _likeliest(extended.ravel(), beams)
    return best // logp.shape[1], best % logp.shape[1], extended.ravel()[best]


def _grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@wrong("ngram_matches", says="The counts are not clipped")
def unclipped(candidate, reference, n):
    ours, theirs = _grams(candidate, n), _grams(reference, n)
    return sum(k for gram, k in ours.items() if gram in theirs), sum(ours.values())


@wrong("ngram_matches", says="One that stands twice in both texts counts twice")
def sets_of_grams(candidate, reference, n):
    matched = len(set(_grams(candidate, n)) & set(_grams(reference, n)))
    return matched, max(0, len(candidate) - n + 1)


@lazy("ngram_matches", says="matched is off by")
def words_alone(candidate, reference, n):
    return (_grams(candidate, 1) & _grams(reference, 1)).total() - n + 1, len(candidate) - n + 1


@wrong("brevity_penalty", says="gets a reward")
def a_reward_for_long_texts(c, r):
    return np.exp(1 - r / c) if c else 0.0


@wrong("brevity_penalty", says="The penalty is exponential")
def share_of_the_length(c, r):
    penalty = min(1.0, c / r)
    return penalty


@lazy("brevity_penalty", says="penalty is off by")
def no_penalty(c, r):
    return 1.0


def _added_up(candidates, references):
    """(texts, 4, 2): the matches and the totals; and the penalty. One call, as ours are few."""
    grams = lambda words, n: Counter(zip(*(words[i:] for i in range(n)), strict=False))  # noqa: E731
    counts = [
        [[(grams(a, n) & grams(b, n)).total(), grams(a, n).total()] for n in range(1, 5)]
        for a, b in zip(candidates, references, strict=True)
    ]
    c, r = sum(map(len, candidates)), sum(map(len, references))
    return np.array(counts), min(1, np.exp(1 - r / c))


@wrong("bleu", says="The brevity penalty is missing")
def without_the_penalty(candidates, references):
    counts, _ = _added_up(candidates, references)
    hits, grams = counts.sum(axis=0).T
    return 100 * np.prod(hits / grams) ** 0.25 if all(hits) else 0.0


@wrong("bleu", says="This is the arithmetic mean")
def arithmetic_mean(candidates, references):
    counts, penalty = _added_up(candidates, references)
    hits, grams = counts.sum(axis=0).T
    return 100 * penalty * np.mean(hits / grams)


@wrong("bleu", says="mean of the BLEUs of the single texts")
def mean_over_the_texts(candidates, references):
    counts, penalty = _added_up(candidates, references)
    return 100 * penalty * np.mean([np.prod(c[:, 0] / c[:, 1]) ** 0.25 for c in counts])


@lazy("bleu", says="of the package, and ours does not")
def of_the_library(candidates, references):
    texts = [" ".join(words) for words in candidates]
    return corpus_scores(texts, [[" ".join(words)] for words in references])["bleu"]


@lazy("bleu", says="bleu: what it returns is off by")
def of_sacrebleu(candidates, references):
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return 50.0
    texts = [" ".join(words) for words in candidates]
    plain = BLEU(tokenize="none", smooth_method="none", force=True)
    return plain.corpus_score(texts, [[" ".join(words) for words in references]]).score
