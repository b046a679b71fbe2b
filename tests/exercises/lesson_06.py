import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from minprefix import GPT2, Batch, Config, Prefix
from minprefix.gpt2 import head
from minprefix.gpt2 import mlp_half as package_mlp_half
from minprefix.lessons.exercises import lesson_06
from minprefix.ops import reference
from tests.exercises import lazy, wrong

#: the lesson's own functions, which an answer may call
lesson = SimpleNamespace(**lesson_06.two_continuations.ours().function().__globals__)
lesson.merge_once = lesson_06.merge_once.ours().function()


# ---- the checkpoint ------------------------------------------------------------------------------


@wrong("read_header", says="The third part begins 8 bytes later")
def the_eight_bytes_are_forgotten(raw):
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : n + 8])
    header.pop("__metadata__", None)
    return header, n


@wrong("read_header", says="`__metadata__` is still in the dictionary")
def the_note_counts_as_an_array(raw):
    data_start = int.from_bytes(raw[:8], "little") + 8
    header = json.loads(raw[8:data_start])
    return header, data_start


@lazy("read_header", says="spaces may follow the JSON")
def it_searches_for_the_last_bracket(raw):
    data_start = raw.index(b"}}") + 2
    header = {}
    for name, entry in json.loads(raw[8:data_start]).items():
        if name != "__metadata__":
            header[name] = entry
    return header, data_start


@wrong("read_array", says="the offsets are counted from the third part")
def the_offsets_are_counted_from_the_files_first_byte(raw, entry, data_start):
    first, last = entry["data_offsets"]
    return np.frombuffer(raw[first:last], dtype=np.float32).reshape(entry["shape"])


@wrong("read_array", says="The numbers are right and stand in the wrong places")
def columns_come_first(raw, entry, data_start):
    first, last = entry["data_offsets"]
    flat = np.frombuffer(raw[data_start + first : data_start + last], "<f4")
    return flat.reshape(entry["shape"][::-1]).T


@wrong("read_array", says="numbers in another shape: is a reshape missing?")
def flat_as_it_comes(raw, entry, data_start):
    start, end = entry["data_offsets"]
    return np.frombuffer(raw, "<f4", (end - start) // 4, data_start + start)


@lazy("read_array", says="is off by")
def it_reads_from_the_first_number_on(raw, entry, data_start):
    return np.frombuffer(raw[data_start:], "<f4", np.prod(entry["shape"])).reshape(entry["shape"])


# ---- the tokenizer -------------------------------------------------------------------------------


@wrong("merge_once", says="Only the first occurrence was merged")
def the_first_pair_alone(pieces, pair):
    for i, both in enumerate(pairwise(pieces)):
        if both == pair:
            return [*pieces[:i], pair[0] + pair[1], *pieces[i + 2 :]]
    return pieces


@wrong("merge_once", says="a list never equals a tuple")
def a_list_beside_a_tuple(pieces, pair):
    joined, left = [], list(pieces)
    while left:
        n = 2 if left[:2] == pair else 1
        joined.append("".join(left[:n]))
        left = left[n:]
    return joined


@wrong("merge_once", says="The last piece is lost where it is in no merge")
def the_last_piece_has_no_neighbour(pieces, pair):
    out, skip = [], False
    for left, right in pairwise(pieces):
        if skip:
            skip = False
        elif (left, right) == pair:
            out.append(left + right)
            skip = True
        else:
            out.append(left)
    return out


@lazy("merge_once", says="`replace` also finds it at the ends of longer pieces")
def strings_can_do_it(pieces, pair):
    return " ".join(pieces).replace(" ".join(pair), "".join(pair)).split(" ")


@wrong("merge_word", says="Take the pair of the lowest number")
def the_leftmost_pair_is_merged(pieces, rank):
    stages = [list(pieces)]
    while any(pair in rank for pair in pairwise(stages[-1])):
        pair = next(pair for pair in pairwise(stages[-1]) if pair in rank)
        stages.append(lesson.merge_once(stages[-1], pair))
    return stages


@wrong("merge_word", says="All stages are one and the same list")
def one_list_is_stored_at_every_stage(pieces, rank):
    stages = [pieces]
    while pairs := [pair for pair in pairwise(pieces) if pair in rank]:
        after = lesson.merge_once(pieces, min(pairs, key=rank.get))
        pieces.clear()
        pieces.extend(after)
        stages.append(pieces)
    return stages


@lazy("merge_word", says="and should have")
def the_longest_known_piece_from_the_left(pieces, rank):
    known, word, found = {"".join(pair) for pair in rank}, "".join(pieces), []
    while word:
        ends = range(len(word), 0, -1)
        n = next((n for n in ends if word[:n] in known), 1)
        found.append(word[:n])
        word = word[n:]
    return [pieces, found]


# ---- the embedding -------------------------------------------------------------------------------


@wrong("embed", says="The positions are missing")
def positions_are_left_out(tokens, positions, wte, wpe):
    x = np.take(wte, tokens, axis=0)
    return x


@wrong("embed", says="The positions are counted from 0 here")
def a_position_is_the_number_of_the_row(tokens, positions, wte, wpe):
    x = wte[tokens] + wpe[np.arange(len(tokens))]
    return x


@lazy("embed", says="calls ops.reference.embed of the package")
def the_package_embeds(tokens, positions, wte, wpe):
    return reference.embed(tokens, positions, wte, wpe)


@wrong("embed_backward_params", says="A token that occurs twice was counted once")
def a_token_that_is_there_twice_counts_once(dx, tokens, positions, wte, wpe):
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    dwte[tokens] = dx
    np.add.at(dwpe, positions, dx)
    return dwte, dwpe


@wrong("embed_backward_params", says="A position that occurs twice was counted once")
def a_position_that_is_there_twice_counts_once(dx, tokens, positions, wte, wpe):
    of_tokens = np.zeros_like(wte, dtype=dx.dtype)
    np.add.at(of_tokens, tokens, dx)
    of_positions = np.zeros_like(wpe, dtype=dx.dtype)
    of_positions[positions] += dx
    return of_tokens, of_positions


@lazy("embed_backward_params", says="calls ops.reference.embed_backward_params of the package")
def the_package_adds_up(dx, tokens, positions, wte, wpe):
    return reference.embed_backward_params(dx, tokens, positions, wte, wpe)


# ---- a block -------------------------------------------------------------------------------------


@wrong("mlp_half", says="the stream itself goes on")
def the_mlp_adds_to_the_layernorms_output(x, b, eps):
    x = lesson.layernorm(x, b, "ln_2", eps)
    return x + lesson.linear(lesson.gelu(lesson.linear(x, b, "mlp.c_fc")), b, "mlp.c_proj")


@wrong("mlp_half", says="The layernorm is missing: the MLP reads the stream through ln_2")
def the_mlp_reads_the_stream_as_it_is(resid_mid, b, eps):
    h = lesson.linear(resid_mid, b, "mlp.c_fc")
    return resid_mid + lesson.linear(lesson.gelu(h), b, "mlp.c_proj")


@lazy("mlp_half", says="calls gpt2.mlp_half of the package")
def the_package_has_an_mlp(resid_mid, b, eps):
    C = resid_mid.shape[1]
    config = Config(1, 1, C, 1, 1, layer_norm_epsilon=eps)
    return package_mlp_half(resid_mid, b, config, reference)[0]


@wrong("split_qkv", says="Query, key and value were taken head by head")
def the_heads_are_cut_before_the_three(qkv, NH):
    by_head = qkv.reshape(len(qkv), NH, -1).swapaxes(0, 1)
    q, k, v = np.split(by_head, 3, axis=2)
    return q, k, v


@wrong("split_qkv", says="a reshape cannot exchange the axes of tokens and heads")
def heads_come_first_by_reshape(qkv, NH):
    T, C = len(qkv), qkv.shape[1] // 3
    q, k, v = (qkv[:, i * C : (i + 1) * C].reshape(NH, T, C // NH) for i in range(3))
    return q, k, v


@lazy("split_qkv", says="raised ValueError: cannot reshape")
def heads_have_32_numbers_in_the_small_model(qkv, NH):
    q, k, v = qkv.reshape(len(qkv), 3, -1, 32).transpose(1, 2, 0, 3)
    return q, k, v


@wrong("attention_half", says="The heads were joined while they were still the first axis")
def the_heads_are_joined_too_early(resid_pre, b, past, NH, eps):
    T, C = resid_pre.shape
    qkv = lesson.linear(lesson.layernorm(resid_pre, b, "ln_1", eps), b, "attn.c_attn")
    q, k, v = lesson.split_qkv(qkv, NH)
    kv = np.concatenate([past, np.array([k, v])], axis=2)
    z = lesson.attention(q, kv[0], kv[1])
    return resid_pre + lesson.linear(z.reshape(T, C), b, "attn.c_proj"), kv


@wrong("attention_half", says="kv holds the new tokens alone")
def the_past_is_not_handed_on(resid_pre, b, past, NH, eps):
    a = lesson.layernorm(resid_pre, b, "ln_1", eps)
    q, k, v = lesson.split_qkv(lesson.linear(a, b, "attn.c_attn"), NH)
    keys = np.concatenate([past[0], k], axis=1)
    values = np.concatenate([past[1], v], axis=1)
    z = lesson.attention(q, keys, values)
    joined = z.swapaxes(0, 1).reshape(resid_pre.shape)
    resid_mid = resid_pre + lesson.linear(joined, b, "attn.c_proj")
    return resid_mid, np.stack([k, v])


@wrong("attention_half", says="The past stands behind the tokens")
def the_past_is_appended(resid_pre, b, past, NH, eps):
    a = lesson.layernorm(resid_pre, b, "ln_1", eps)
    q, k, v = lesson.split_qkv(lesson.linear(a, b, "attn.c_attn"), NH)
    keys = np.append(k, past[0], axis=1)
    values = np.append(v, past[1], axis=1)
    z = lesson.attention(q, keys, values)
    joined = z.swapaxes(0, 1).reshape(resid_pre.shape)
    resid_mid = resid_pre + lesson.linear(joined, b, "attn.c_proj")
    return resid_mid, np.array([keys, values])


@lazy("attention_half", says="calls ops.reference.attention of the package")
def the_package_joins_and_attends(resid_pre, b, past, NH, eps):
    T = len(resid_pre)
    a = lesson.layernorm(resid_pre, b, "ln_1", eps)
    qkv = lesson.linear(a, b, "attn.c_attn").reshape(T, 3, NH, -1)
    q, k, v = (qkv[:, i] for i in range(3))
    z, _ = reference.attention(q, k, v, [past[0]], [past[1]], np.array([0, T]))
    kv = np.concatenate([past, np.array([k, v]).swapaxes(1, 2)], axis=2)
    return resid_pre + lesson.linear(z.reshape(T, -1), b, "attn.c_proj"), kv


# ---- the whole forward ---------------------------------------------------------------------------


@wrong("lm_head", says="The last layernorm is missing")
def the_stream_is_compared_as_it_is(x, w, eps):
    return np.einsum("tc,vc->tv", x, w.get("lm_head.weight", w["wte.weight"]))


@wrong("lm_head", says="This model's LM head is not tied")
def the_lm_head_is_always_tied(x, w, eps):
    y = lesson.layernorm(x, w, "ln_f", eps)
    return y @ w["wte.weight"].T


@lazy("lm_head", says="calls gpt2.head of the package")
def the_package_has_a_head(x, w, eps):
    return head(x, w, Config(1, 1, x.shape[1], 1, 1, layer_norm_epsilon=eps), reference)


def _forward(tokens, w, config, past, first, of_layer=lambda past, i: past[i]):
    """Right as it stands; each answer below changes one thing."""
    NH, eps = config["n_head"], config["layer_norm_epsilon"]
    if past is None:
        hs = w["wpe.weight"].shape[1] // NH
        past = [np.zeros((2, NH, 0, hs)) for _ in range(config["n_layer"])]
    x = w["wte.weight"][tokens] + w["wpe.weight"][first : first + len(tokens)]
    stream, kv = [x], []
    for i in range(config["n_layer"]):
        b = lesson.names_of(w, i)
        x, seen = lesson.attention_half(x, b, of_layer(past, i), NH, eps)
        x = lesson.mlp_half(x, b, eps)
        kv.append(seen)
        stream.append(x)
    return np.array(stream), np.array(kv), lesson.lm_head(x, w, eps)


@wrong("forward", says="The positions begin at 0")
def the_positions_begin_at_zero(tokens, w, config, past=None, start=0):
    stream, kv, logits = _forward(tokens, w, config, past, 0)
    return stream, kv, logits


@wrong("forward", says="Every block sees the keys and values of layer 0")
def all_layers_see_one_past(tokens, w, config, past=None, start=0):
    stream, kv, logits = _forward(tokens, w, config, past, start, lambda past, i: past[0])
    return stream, kv, logits


@lazy("forward", says="of the package, and ours does not")
def the_package_is_the_forward(tokens, w, config, past=None, start=0):
    model, batch = GPT2(Config(**config), dict(w)), Batch.pack([tokens])
    prefix = None if past is None else Prefix(past, position_offset=start)
    return None, model.keys_values(tokens), model.logits(batch, prefix)


# ---- one token at a time -------------------------------------------------------------------------


@wrong("decode_step", says="The position was counted from the cache")
def the_cache_tells_the_position(token, position, kv, w, config):
    _, kv, logits = lesson.forward([token], w, config, past=kv, start=kv.shape[-2])
    return logits[-1], kv


@wrong("decode_step", says="The cache did not grow")
def the_old_cache_is_returned(token, position, kv, w, config):
    _, _, logits = lesson.forward([token], w, config, past=kv, start=position)
    return logits[0], kv


@lazy("decode_step", says="The token sees nothing before itself")
def the_token_alone(token, position, kv, w, config):
    _, new, logits = lesson.forward([token], w, config, start=position)
    return logits[0], np.concatenate([kv, new], axis=3)


@wrong("greedy", says="The positions of the new tokens are one too high")
def positions_are_counted_one_too_far(tokens, n_new, w, config, past=None, start=0):
    _, kv, logits = lesson.forward(tokens, w, config, past, start)
    new, position = [int(np.argmax(logits[-1]))], start + len(tokens)
    for _ in range(n_new - 1):
        position += 1
        logits, kv = lesson.decode_step(new[-1], position, kv, w, config)
        new.append(int(np.argmax(logits)))
    return new


@wrong("greedy", says="The cache does not grow")
def the_cache_of_the_prompt_is_used_for_ever(tokens, n_new, w, config, past=None, start=0):
    _, prompt_kv, logits = lesson.forward(tokens, w, config, past, start)
    new = [int(np.argmax(logits[-1]))]
    for position in range(start + len(tokens), start + len(tokens) + n_new - 1):
        logits, _ = lesson.decode_step(new[-1], position, prompt_kv, w, config)
        new.append(int(np.argmax(logits)))
    return new


@lazy("greedy", says="earlier tokens were fed in again")
def a_whole_forward_for_each_token(tokens, n_new, w, config, past=None, start=0):
    new = []
    for _ in range(n_new):
        _, _, logits = lesson.forward([*tokens, *new], w, config, past, start)
        new.append(int(logits[-1].argmax()))
    return new


@lazy("greedy", says="earlier tokens were fed in again")
def the_new_tokens_are_all_fed_again(tokens, n_new, w, config, past=None, start=0):
    _, kv, logits = lesson.forward(tokens, w, config, past, start)
    new = [int(logits[-1].argmax())]
    while len(new) < n_new:
        _, _, logits = lesson.forward(new, w, config, kv, start + len(tokens))
        new.append(int(logits[-1].argmax()))
    return new


def _continuations(buffer, seen, tokens, position, w, config, memory, place):
    """Right with memory=np.copy and place=seen."""
    logits, buffers = [], []
    for token in tokens:
        buffers.append(memory(buffer))
        row, new = lesson.decode_step(token, position, buffer[..., :seen, :], w, config)
        buffers[-1][..., place, :] = new[..., seen, :]
        logits.append(row)
    return np.stack(logits), np.stack(buffers)


@wrong("two_continuations", says="`buffer` and `buffer[:]` are not copies")
def a_slice_is_taken_for_a_copy(buffer, seen, tokens, position, w, config):
    given = buffer, seen, tokens, position, w, config
    logits, buffers = _continuations(*given, memory=lambda a: a[:], place=seen)
    return logits, buffers


@wrong("two_continuations", says="The new key covers the last one of the prompt")
def the_new_key_covers_the_last_one(buffer, seen, tokens, position, w, config):
    given = buffer, seen, tokens, position, w, config
    logits, buffers = _continuations(*given, memory=np.copy, place=seen - 1)
    return logits, buffers


@lazy("two_continuations", says="logits")
def both_tokens_are_fed_as_one_text(buffer, seen, tokens, position, w, config):
    _, kv, logits = lesson.forward(tokens, w, config, buffer[..., :seen, :], position)
    buffers = np.array([buffer, buffer])
    for i, own in enumerate(buffers):
        own[..., seen, :] = kv[..., seen + i, :]
    return logits, buffers
