import numpy as np

from minprefix import Batch, Prefix, generate
from minprefix.gpt2 import Config
from minprefix.ops import reference
from tests.exercises import lazy, wrong

# ---- tokens --------------------------------------------------------------------------------------


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


@wrong("write_greedily", says="After the first token the model sees the newest token alone")
def only_the_newest_token_is_given(model, prompt, prefix, most):
    ids, new = model.encode(prompt), []
    for _ in range(most):
        token = int(model.logits(Batch.pack([ids]), prefix)[-1].argmax())
        if token == model.config.eos_token_id:
            break
        new.append(token)
        ids = [token]
    return model.decode(new)


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


@wrong("description_loss", says="Every target is taken from every row")
def all_columns_are_taken(probabilities, ids, start):
    targets = ids[start:]
    p = probabilities[start - 1 : -1][:, targets]
    return -np.log(p).mean()


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
