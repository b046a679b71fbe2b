import numpy as np

from minprefix import MLPPrefix, Prefix, loss_and_grad
from minprefix.storage.saved import flatten, unflatten
from tests.exercises import lazy, wrong

# ---- the layout ----


@wrong("unflatten_rows", says="Everything is reshaped at once")
def one_reshape_to_the_right_shape(flat, NH, hs):
    L = flat.shape[1] // (2 * NH * hs)
    return np.reshape(flat, (L, 2, NH, flat.shape[0], hs))


@wrong("unflatten_rows", says="The keys of all layers are taken first")
def keys_and_then_values(flat, NH, hs):
    keys, values = np.split(flat, 2, axis=1)
    both = [a.reshape(len(flat), -1, NH, hs).transpose(1, 2, 0, 3) for a in (keys, values)]
    return np.stack(both, axis=1)


@wrong("unflatten_rows", says="The slots stand before the heads")
def the_slots_stand_before_the_heads(flat, NH, hs):
    return np.einsum("plknx->lkpnx", flat.reshape(len(flat), -1, 2, NH, hs))


@wrong("unflatten_rows", says="Heads and head size are swapped")
def the_head_size_before_the_heads(flat, NH, hs):
    rows = flat.reshape(len(flat), -1, 2, hs, NH)
    return rows.transpose(1, 2, 4, 0, 3)


@lazy("unflatten_rows", says="calls storage.saved.unflatten of the package")
def the_package_cuts_the_rows(flat, NH, hs):
    return unflatten(flat, flat.shape[1] // (2 * NH * hs), NH, hs)


@wrong("flatten_kv", says="reshaped without moving the slots to the front")
def a_reshape_alone(kv):
    return kv.reshape((kv.shape[3], -1))


@wrong("flatten_kv", says="The keys of all layers come first")
def all_keys_and_then_all_values(kv):
    keys, values = (np.moveaxis(kv[:, i], 2, 0).reshape(kv.shape[3], -1) for i in (0, 1))
    return np.hstack([keys, values])


@lazy("flatten_kv", says="calls storage.saved.flatten of the package")
def the_package_joins_the_rows(kv):
    return flatten(kv)


# ---- the network ----


def _flat(parameters, middle=np.tanh):
    h = middle(parameters["embedding"] @ parameters["weight_1"] + parameters["bias_1"])
    return h @ parameters["weight_2"] + parameters["bias_2"], h


def _kv(parameters, NH, middle=np.tanh):
    flat, h = _flat(parameters, middle)
    hs = parameters["embedding"].shape[1] // NH
    return flat.reshape(len(h), -1, 2, NH, hs).transpose(1, 2, 3, 0, 4), h


@wrong("mlp_kv", says="The tanh is missing")
def two_linear_layers(parameters, NH):
    return _kv(parameters, NH, middle=lambda a: a)


@wrong("mlp_kv", says="There is a tanh behind the second layer, too")
def a_tanh_behind_each_layer(parameters, NH):
    kv, h = _kv(parameters, NH)
    return np.tanh(kv), h


@wrong("mlp_kv", says="The second bias is missing")
def no_bias_at_the_end(parameters, NH):
    return _kv({**parameters, "bias_2": 0}, NH)


@lazy("mlp_kv", says="calls prefix.MLPPrefix._forward of the package")
def the_package_runs_the_network(parameters, NH):
    h, kv = MLPPrefix(parameters, NH)._forward()
    return kv, h


@wrong("count_numbers", says="The bias of the first layer is not counted")
def no_bias_below(P, C, hidden, L):
    out = 2 * L * C
    return P * C + C * hidden + (hidden + 1) * out, P * out


@wrong("count_numbers", says="The embedding is not counted")
def the_embedding_is_an_input(P, C, hidden, L):
    out = 2 * L * C
    return (C + 1) * hidden + (hidden + 1) * out, P * out


@wrong("count_numbers", says="The second layer gives keys and values")
def keys_alone(P, C, hidden, L):
    return (P + hidden) * C + hidden + (hidden + 1) * L * C, P * 2 * L * C


@wrong("count_numbers", says="The first layer is counted for each slot")
def each_slot_has_a_first_layer(P, C, hidden, L):
    layer_1 = P * (C * hidden + hidden)
    out = 2 * L * C
    return P * C + layer_1 + (hidden + 1) * out, P * out


@lazy("count_numbers", says="trained is off by")
def the_numbers_of_the_lesson(P, C, hidden, L):
    return 740672, 12800


# ---- its backward ----


def _backward(dkv, parameters, h, slope=None, slots=True, embedding=1):
    dflat = dkv.transpose(3, 0, 1, 2, 4) if slots else dkv
    dflat = dflat.reshape(len(h), -1)
    du = dflat @ parameters["weight_2"].T * (1 - h**2 if slope is None else slope)
    return {
        "embedding": du @ parameters["weight_1"].T * embedding,
        "weight_1": parameters["embedding"].T @ du,
        "bias_1": du.sum(0),
        "weight_2": h.T @ dflat,
        "bias_2": dflat.sum(0),
    }


@wrong("mlp_kv_backward", says="The derivative of tanh is missing")
def no_derivative_of_tanh(dkv, parameters, h):
    return _backward(dkv, parameters, h, slope=1)


@wrong("mlp_kv_backward", says="This is the derivative of the sigmoid")
def the_sigmoids_derivative(dkv, parameters, h):
    return _backward(dkv, parameters, h, slope=h - h * h)


@wrong("mlp_kv_backward", says="The tanh is taken twice")
def the_tanh_of_the_tanh(dkv, parameters, h):
    return _backward(dkv, parameters, h, slope=1 - np.tanh(h) ** 2)


@wrong("mlp_kv_backward", says="db_2 still has a row for each slot")
def the_biases_have_rows(dkv, parameters, h):
    grads = _backward(dkv, parameters, h)
    db_2 = dkv.transpose(3, 0, 1, 2, 4).reshape(len(h), -1)
    return {**grads, "bias_2": db_2}


@wrong("mlp_kv_backward", says="dkv is reshaped without moving the slots to the front")
def the_gradient_is_not_transposed(dkv, parameters, h):
    return _backward(dkv, parameters, h, slots=False)


@wrong("mlp_kv_backward", says="as if the embedding were an input")
def the_embedding_gets_nothing(dkv, parameters, h):
    return _backward(dkv, parameters, h, embedding=0)


@lazy("mlp_kv_backward", says="calls prefix.MLPPrefix.backward of the package")
def the_package_goes_backward(dkv, parameters, h):
    return MLPPrefix(parameters, dkv.shape[2]).backward(dkv)


@lazy("mlp_kv_backward", says="without trying values out")
def the_complex_step_tries_every_number(dkv, parameters, h):
    grads = {}
    for name, a in parameters.items():
        grads[name] = np.zeros(a.shape)
        for index in np.ndindex(a.shape):
            moved = a.astype(complex)
            moved[index] += 1e-30j
            kv, _ = _kv({**parameters, name: moved}, dkv.shape[2])
            grads[name][index] = (dkv * kv).sum().imag / 1e-30
    return grads


# ---- the loop ----


def _train(model, parameters, batches, rates, adam, fresh_kv=True, at_end=True, adams=False):
    losses, NH = [], model.config.n_head
    kv, h = _kv(parameters, NH)
    for i, batch in enumerate(batches):
        if fresh_kv:
            kv, h = _kv(parameters, NH)
        loss, dkv = loss_and_grad(model, Prefix(kv), batch)
        losses += [loss]
        optimizer = type(adam)() if adams else adam
        optimizer.step(parameters, _backward(dkv, parameters, h), rates[i])
    return losses, _kv(parameters, NH)[0] if at_end else kv


@wrong("train_network", says="kv is one step old")
def the_last_step_is_lost(*arguments):
    return _train(*arguments, at_end=False)


@wrong("train_network", says="computed once, before the loop")
def the_network_runs_once(*arguments):
    return _train(*arguments, fresh_kv=False)


@wrong("train_network", says="Each step has a new AdamW")
def every_step_has_an_optimizer_of_its_own(*arguments):
    return _train(*arguments, adams=True)


@wrong("train_network", says="A copy was trained")
def a_copy_is_trained(model, parameters, batches, rates, adam):
    own = {name: a.copy() for name, a in parameters.items()}
    return _train(model, own, batches, rates, adam)


@lazy("train_network", says="calls prefix.MLPPrefix.backward of the package")
def the_package_has_such_a_prefix(model, parameters, batches, rates, adam):
    prefix, losses = MLPPrefix(parameters, model.config.n_head), []
    for batch, lr in zip(batches, rates, strict=True):
        loss, dkv = loss_and_grad(model, prefix, batch)
        adam.step(prefix.parameters, prefix.backward(dkv), lr)
        losses.append(loss)
    return losses, prefix.kv


# ---- what the slots share, and the fold ----


@wrong("carried_along", says="The bias is left out")
def the_weight_alone(h, j):
    return (h @ h[j]) / (h[j] @ h[j])


@wrong("carried_along", says="divided by that of slot 0")
def in_moves_of_slot_0(h, j):
    moves = np.array([row @ h[j] + 1 for row in h])
    return moves / moves[0]


@lazy("carried_along", says="what it returns")
def only_the_slot_itself_moves(h, j):
    return np.eye(len(h))[j]


@wrong("folded_rows", says="kv is reshaped without moving the slots to the front")
def kv_is_only_reshaped(parameters):
    if "kv" in parameters:
        kv = parameters["kv"]
        return kv.reshape(kv.shape[3], kv.size // kv.shape[3])
    return _flat(parameters)[0]


@wrong("folded_rows", says="The embedding is returned")
def the_embedding_is_taken_for_the_prefix(parameters):
    if "kv" in parameters:
        return parameters["kv"].transpose(3, 0, 1, 2, 4).reshape(parameters["kv"].shape[3], -1)
    return parameters["embedding"].copy()


@lazy("folded_rows", says="calls prefix.Prefix.fold of the package")
def the_package_folds(parameters):
    if "kv" in parameters:
        return flatten(parameters["kv"])
    return flatten(MLPPrefix(parameters, 1).fold().kv)
