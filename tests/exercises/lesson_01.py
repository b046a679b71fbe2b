from collections import Counter
from itertools import pairwise

import numpy as np

from minprefix import GPT2, Batch, Prefix, generate
from minprefix.gpt2 import Config
from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- tokens --------------------------------------------------------------------------------------


@wrong("apply_merge", says="The second piece of a merged pair stands there once more")
def a_for_loop_does_not_skip(pieces, pair):
    out = []
    for i, piece in enumerate(pieces):
        if piece == pair[0] and i + 1 < len(pieces) and pieces[i + 1] == pair[1]:
            out.append(piece + pieces[i + 1])
        else:
            out.append(piece)
    return out


@wrong("apply_merge", says="Compare whole pieces")
def with_replace_on_the_joined_text(pieces, pair):
    return " ".join(pieces).replace(" ".join(pair), "".join(pair)).split()


@wrong("apply_merge", says="The last piece gets lost")
def the_range_ends_before_the_last_piece(pieces, pair):
    out, skip = [], False
    for left, right in pairwise(pieces):
        if skip:
            skip = False
            continue
        skip = (left, right) == pair
        out.append(left + right if skip else left)
    return out


@lazy("apply_merge", says="Only the first place is merged")
def it_merges_what_the_example_shows_first(pieces, pair):
    for i in range(len(pieces) - 1):
        if (pieces[i], pieces[i + 1]) == pair:
            return [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]
    return pieces


@wrong("next_merge", says="Pairs reach from one word into the next")
def all_words_in_one_list(words):
    flat = [piece for word in words for piece in word]
    return Counter(pairwise(flat)).most_common(1)[0][0]


@wrong("next_merge", says="A word that occurs several times is counted once")
def a_vocabulary_of_words(words):
    counts = Counter()
    for word in dict.fromkeys(map(tuple, words)):
        for i in range(len(word) - 1):
            counts[word[i], word[i + 1]] += 1
    return max(counts, key=counts.get)


@lazy("next_merge", says="Letters are counted")
def by_counting_letters_of_the_text(words):
    counts = Counter()
    for word in map("".join, words):
        for i in range(len(word) - 1):
            counts[word[i], word[i + 1]] += 1
    return max(counts, key=counts.get)


def _apply(pieces, pair):
    out = []
    for piece in pieces:
        if out and (out[-1], piece) == tuple(pair):
            out[-1] += piece
        else:
            out.append(piece)
    return out


@wrong("cut_word", says="The merges are applied in the wrong order")
def the_longest_merge_first(word, merges):
    pieces = list(word)
    for pair in merges[::-1]:
        pieces = _apply(pieces, pair)
    return pieces


@wrong("cut_word", says="Each merge starts from the single characters again")
def the_result_is_not_kept(word, merges):
    pieces = list(word)
    for pair in merges:
        pieces = _apply(list(word), pair)
    return pieces


@lazy("cut_word", says="of the package, and ours does not")
def by_the_models_tokenizer(word, merges):
    model = GPT2.load("tiny")
    return [model.decode([i]) for i in model.encode(word)]


# ---- writing and counting ------------------------------------------------------------------------


def _write(model, prompt, prefix, most, row=-1):
    ids, new = model.encode(prompt), []
    for _ in range(most):
        scores = model.logits(Batch.pack([ids + new]), prefix)
        token = int(np.argmax(scores[row]))
        if token == model.config.eos_token_id:
            break
        new.append(token)
    return ids, new


@wrong("write_greedily", says="The next token is read from the first row")
def the_first_row_is_read(model, prompt, prefix, most):
    return model.decode(_write(model, prompt, prefix, most, row=0)[1])


@wrong("write_greedily", says="The prompt is part of what is returned")
def everything_is_decoded(model, prompt, prefix, most):
    ids, new = _write(model, prompt, prefix, most)
    return model.decode(ids + new)


@wrong("write_greedily", says="The prefix is not used")
def the_prefix_is_forgotten(model, prompt, prefix, most):
    return model.decode(_write(model, prompt, None, most)[1])


@lazy("write_greedily", says="calls generate.generate of the package")
def by_generate(model, prompt, prefix, most):
    return generate(model, [prompt], prefix, max_new_tokens=most)[0]


@wrong("prefix_size", says="the 2 is missing")
def keys_alone(n_layer, n_head, head_size, length, n_weights):
    numbers = n_layer * n_head * head_size * length
    return numbers, numbers / n_weights


@wrong("prefix_size", says="This is a percentage")
def in_percent(n_layer, n_head, head_size, length, n_weights):
    numbers = 2 * n_layer * n_head * head_size * length
    return numbers, numbers / n_weights * 100


@lazy("prefix_size", says="of the package, and ours does not")
def an_array_is_made_and_counted(n_layer, n_head, head_size, length, n_weights):
    config = Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_head * head_size, vocab_size=9, n_positions=99
    )
    n = Prefix.zero(config, length).n_parameters
    return n, n / n_weights


@lazy("prefix_size", says="should be 92160")
def what_the_lesson_prints(n_layer, n_head, head_size, length, n_weights):
    return 12800, 12800 / 1442240


@wrong("description_loss", says="Row t predicts the token after token t")
def each_row_for_its_own_token(probabilities, ids, start):
    return -np.mean([np.log(probabilities[t, ids[t]]) for t in range(start, len(ids))])


@wrong("description_loss", says="The mean is taken too early")
def the_logarithm_of_the_mean(probabilities, ids, start):
    chosen = [probabilities[t - 1, ids[t]] for t in range(start, len(ids))]
    return -np.log(np.mean(chosen))


@lazy("description_loss", says="calls ops.reference.cross_entropy of the package")
def by_the_cross_entropy_of_the_package(probabilities, ids, start):
    targets = np.array(ids[start:])
    M = len(targets)
    return reference.cross_entropy(
        np.log(probabilities[start - 1 : -1]), targets, np.full(M, 1 / M)
    )[0]


@wrong("step_downhill", says="The gradient counts twice")
def by_the_sum_of_the_gradient(kv, dkv, fall):
    return kv - fall / dkv.sum() * dkv


@wrong("step_downhill", says="This goes uphill")
def along_the_gradient(kv, dkv, fall):
    return kv + fall * dkv / np.sum(dkv * dkv)


@lazy("step_downhill", says="and s is another number")
def fall_is_taken_for_the_rate(kv, dkv, fall):
    return kv - fall * dkv
