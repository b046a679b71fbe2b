"""A module of PyTorch is graded as it is: by a file of a few lines that builds it."""

import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

from minprefix.cli import main
from minprefix.conformance import load, run, select
from minprefix.conformance.adapters import hugging_face, load_weights
from minprefix.conformance.adapters.labels import MISTAKES, mistake
from minprefix.conformance.adapters.layouts import OF_AN_ARGUMENT, checked, laid_out
from minprefix.conformance.adapters.weights import homes_by_name, homes_by_value, role
from minprefix.conformance.model_problems import SMALL, model_case, weights_of
from minprefix.conformance.module_checks import MODULE_CASES
from minprefix.conformance.report import text
from minprefix.errors import InputError
from tests.plain_gpt2 import GPT

PLAIN = Path(__file__).with_name("plain_gpt2.py").read_text(encoding="utf-8")

MY_MODULE = """\
from minprefix.conformance.adapters import load_weights
from {module} import GPT

def build(config, weights):
    return load_weights(GPT(config), weights)
"""

TRANSFORMERS = """\
from transformers import GPT2LMHeadModel
from minprefix.conformance.adapters import gpt2_config, load_weights

def build(config, weights):
    return load_weights(GPT2LMHeadModel(gpt2_config(config)), weights)
"""

#: a model of one's own over transformers', with an argument for the prefix
SUBCLASS = """\
import torch
from transformers import DynamicCache, GPT2LMHeadModel
from minprefix.conformance.adapters import gpt2_config, load_weights

class PrefixGPT2(GPT2LMHeadModel):
    def forward(self, input_ids, prefix_kv=None, past_key_values=None, **others):
        if prefix_kv is not None:  # (B, P, L * 2 * C)
            past_key_values = DynamicCache()
            B, P, _ = prefix_kv.shape
            c = self.config
            kv = prefix_kv.view(B, P, c.n_layer, 2, c.n_head, -1).permute(2, 3, 0, 4, 1, 5)
            for i, (k, v) in enumerate(kv):
                past_key_values.update(k, v, i)
        return super().forward(input_ids, past_key_values=past_key_values, **others)

def build(config, weights):
    return load_weights(PrefixGPT2(gpt2_config(config)), weights)
"""

PEFT = """\
from peft import PrefixTuningConfig, get_peft_model
from transformers import GPT2LMHeadModel
from minprefix.conformance.adapters import gpt2_config, load_weights

def build(config, weights, length):
    base = load_weights(GPT2LMHeadModel(gpt2_config(config)), weights)
    kind = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    return get_peft_model(base, kind)
"""

#: checks that take a moment and see most of what a person may have got wrong
SOME = ("model/one-sequence", "model/weights", "decoding/own-prefixes", "module/")

_FILES = iter(range(10**6))


def _write(tmp_path, source, name="my_module"):
    """A file with a name that no other test's has: Python keeps modules by their names."""
    path = tmp_path / f"{name}_{next(_FILES)}.py"
    path.write_text(source, encoding="utf-8")
    return path


def _plain(tmp_path, *changes, build=MY_MODULE, after=""):
    """The plain module with changes of its text, and a file that builds it; `after`: lines that do
    something to `model` then."""
    source = PLAIN
    for right, wrong in changes:
        assert source.count(right) == 1, right
        source = source.replace(right, wrong)
    module = _write(tmp_path, source, "gpt").stem
    mine = build.replace("{module}", module)
    if after:
        loaded = "load_weights(GPT(config), weights)"
        mine = mine.replace(f"return {loaded}", f"model = {loaded}\n{after}\n    return model")
    return _write(tmp_path, mine)


def _results(path, *only, make="hf", options="", zoo=False):
    checks = select(only, ["model"], module=True)
    return run(load(f"{make}:{path}{options}"), checks, zoo)


def _failed(results):
    return {r.check: [f.sentence for f in r.findings] for r in results if r.status == "failed"}


# ---- right modules pass --------------------------------------------------------------------------


def test_a_plain_module_needs_few_lines_and_passes(tmp_path):
    mine = [line for line in MY_MODULE.splitlines() if line.strip()]
    assert len(mine) <= 12
    results = _results(_plain(tmp_path), *SOME)
    assert _failed(results) == {}
    assert [(r.check, r.not_implemented) for r in results if r.not_implemented] == []
    assert {r.check for r in results} >= set(MODULE_CASES)
    for r in results:
        assert max(r.errors.values()) < (1e-6 if r.check == "module/labels" else 1e-12), r.check


@pytest.mark.parametrize(
    ("source", "make", "entry", "left_out"),
    [
        (TRANSFORMERS, "hf", "argument past_key_values (cache)", set()),
        (SUBCLASS, "hf", "argument prefix_kv (B P L*2*NH*hs)", set()),
        (
            PEFT,
            "peft",
            "parameter prompt_encoder.default.embedding.weight (P L*2*NH*hs)",
            {"module/padded-left"},
        ),
    ],
)
def test_transformers_and_peft_pass_as_they_are(tmp_path, source, make, entry, left_out):
    path = _write(tmp_path, source)
    assert str(load(f"{make}:{path}").functions.entry) == entry
    results = _results(path, *SOME, make=make)
    assert _failed(results) == {}
    assert {r.check for r in results if r.status != "passed"} <= left_out


@pytest.mark.long
@pytest.mark.parametrize(
    ("source", "make"), [(None, "hf"), (TRANSFORMERS, "hf"), (SUBCLASS, "hf"), (PEFT, "peft")]
)
@pytest.mark.parametrize("options", [[], ["--dtype", "float32"]])
def test_all_checks_pass_at_the_command_line_within_a_minute(
    tmp_path, capsys, source, make, options
):
    path = _plain(tmp_path) if source is None else _write(tmp_path, source)
    start = time.monotonic()
    assert main(["check", "--model", f"{make}:{path}", *options]) == 0, capsys.readouterr().out
    assert time.monotonic() - start < 300  # 13 s where nothing else runs


def test_a_file_by_the_command_line_runs_in_a_process_of_its_own(tmp_path, capsys):
    path, report, names = _plain(tmp_path), tmp_path / "report.json", tmp_path / "names.json"
    names.write_text('{"blocks.{i}.attn.out": "h.{i}.attn"}')
    spec = f"hf:{path}"
    options = ["--dtype", "float32", "--names", str(names), "--json", str(report)]
    assert main(["check", "--model", spec, *options, "--only", "model/one-sequence"]) == 0
    assert "the only check passed" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["implementation"] == f"{spec}?names={names}&dtype=float32"
    (result,) = found["results"]
    assert 1e-9 < max(result["errors"].values()) < 1e-4  # in single precision


def test_single_precision_finds_a_mistake_too(tmp_path):
    right, wrong = _plain(tmp_path), _plain(tmp_path, (".tril(P)", ".tril(P + 1)"))
    for path, failed in ((right, []), (wrong, ["model/one-sequence", "module/batch"])):
        results = _results(path, "one-sequence", "module/batch", options="?dtype=float32")
        assert [
            r.check for r in results if r.status == "failed" and "decod" not in r.check
        ] == failed


# ---- a mistake is found, and its place is named --------------------------------------------------

#: mistake -> changes of the plain module, what is done to the model then, the check, the tensor
#: that is named first, and words of the first hint
MISTAKEN = {
    "block 2's projection without its bias": (
        [], "    model.h[2 % len(model.h)].attn.c_proj.bias.data.zero_()",
        "model/one-sequence", "blocks.2.attn.out",
        "what comes out of h.2.attn.c_proj; blocks.2.attn.z before it, what goes into "
        "h.2.attn.c_proj, is right",
    ),
    "block 1's projection loaded as (in, out)": (
        [], "    p = model.h[1].attn.c_proj.weight; p.data = p.data.T.clone()",
        "model/one-sequence", "blocks.1.attn.out", "what comes out of h.1.attn.c_proj",
    ),
    "every projection loaded as (in, out)": (
        [], "    for b in model.h: b.attn.c_proj.weight.data = b.attn.c_proj.weight.data.T.clone()",
        "model/one-sequence", "blocks.0.attn.out", "what comes out of h.0.attn.c_proj",
    ),
    "keys and values swapped in the prefix": (
        [("torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)",
          "torch.cat([past[1], k], 2), torch.cat([past[0], v], 2)")], "",
        "model/one-sequence", "blocks.0.attn.z", "blocks.0.attn.v before it",
    ),
    "block 0's prefix in every block": (
        [("else past_key_values[i]", "else past_key_values[0]")], "",
        "model/one-sequence", "blocks.1.attn.z", "what goes into h.1.attn.c_proj",
    ),
    "the first row's prefix for all rows": (
        [("torch.cat([past[0], k], 2)", "torch.cat([past[0][:1].expand(B, -1, -1, -1), k], 2)")],
        "", "module/batch", "blocks.0.attn.z", "what goes into h.0.attn.c_proj",
    ),
    "positions from 0": (
        [("[None] + P", "[None]")], "",
        "model/one-sequence", "blocks.0.resid_pre", "what goes into h.0.ln_1",
    ),
    "the mask at another corner": (
        [(".tril(P)", ".tril()")], "",
        "model/one-sequence", "blocks.0.attn.z", "blocks.0.attn.v before it",
    ),
    "heads merged without a transpose": (
        [("z.transpose(1, 2).reshape", "z.reshape")], "",
        "model/one-sequence", "blocks.0.attn.z", "blocks.0.attn.v before it",
    ),
    "gelu by erf": (
        [(', approximate="tanh"', "")], "", "model/one-sequence", "blocks.0.mlp.post",
        "what goes into h.0.mlp.c_proj; blocks.0.mlp.pre before it",
    ),
    "no residual around attention": (
        [("x = x + out", "x = out")], "", "model/one-sequence", "blocks.0.resid_mid",
        "blocks.0.attn.out before it, what comes out of h.0.attn.c_proj, is right",
    ),
    "another eps in the second norm": (
        [("self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)",
          "self.ln_2 = nn.LayerNorm(config.n_embd)")], "",
        "model/separate-head", "blocks.0.ln_2.out", "blocks.0.resid_mid before it",
    ),
    "no norm before the MLP": (
        [("(self.ln_2(x))", "(x)")], "",
        "model/one-sequence", "blocks.0.mlp.pre", "what comes out of h.0.mlp.c_fc",
    ),
    "no last norm": (
        [("self.lm_head(self.ln_f(x))", "self.lm_head(x)")], "",
        "model/one-sequence", "logits", "",
    ),
    "values of the prefix detached": (
        [("torch.cat([past[1], v], 2)", "torch.cat([past[1].detach(), v], 2)")], "",
        "model/one-sequence", "prefix.0.dv", "",
    ),
    "a gradient stopped before block 1's MLP": (
        [("(self.ln_2(x))", "(self.ln_2(x).detach())")], "",
        "model/one-sequence", "blocks.2.dresid_mid", "the gradient of what goes into h.2.ln_2",
    ),
    "a cache without the past": (
        [("return self.c_proj(z.transpose(1, 2).reshape(B, T, C)), (k, v)",
          "return self.c_proj(z.transpose(1, 2).reshape(B, T, C)), (k[:, :, P:], v[:, :, P:])")],
        "", "decoding/one-sequence", "logits", "",
    ),
    "padding seen": (
        [("if mask is not None", "if False")], "", "module/padded-left", "logits", "",
    ),
    "the mask of padding inverted": (
        [("seen & mask[:, None, None, :].bool()", "seen & ~mask[:, None, None, :].bool()")], "",
        "module/padded", "logits", "",
    ),
    "labels not shifted": (
        [("logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()",
          "logits.flatten(0, 1), labels.flatten()")], "",
        "module/labels", "loss", "is what one gets if the labels are not shifted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_mistake_is_found_and_its_place_is_named(tmp_path, name):
    changes, after, check, tensor, hint = MISTAKEN[name]
    path = _plain(tmp_path, *changes, after=after)
    (result,) = (r for r in _results(path, check) if r.check == check)
    first = result.findings[0]
    assert first.tensor == tensor
    assert hint in "; ".join(first.hints[:1])


def test_the_report_names_block_2_and_its_projection(tmp_path):
    _, after, check, _, _ = MISTAKEN["block 2's projection without its bias"]
    said = text(_results(_plain(tmp_path, after=after), check), "my_module")
    said = " ".join(said.split())
    assert "1. run_model, blocks.2.attn.out in model/one-sequence" in said
    assert "is what comes out of h.2.attn.c_proj; blocks.2.attn.z before it" in said


#: q, k and v of a head side by side, as GPT-NeoX has them: another layout, and as right
BY_HEAD = (
    "    c, b = config, torch.arange(config.n_embd)\n"
    "    order = torch.cat([part * c.n_embd + b[h * c.head_size:(h + 1) * c.head_size]\n"
    "                       for h in range(c.n_head) for part in range(3)])\n"
    "    for block in model.h:\n"
    "        linear = block.attn.c_attn\n"
    "        linear.weight.data, linear.bias.data = linear.weight[order], linear.bias[order]"
)
BY_HEAD_CHANGES = (
    ("part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)", "part.transpose(1, 2)"),
    (
        "self.c_attn(x).split(C, dim=2)",
        "self.c_attn(x).view(B, T, self.n_head, 3, C // self.n_head).unbind(3)",
    ),
)


def test_another_layout_inside_is_no_mistake_and_hides_none(tmp_path):
    build = "import torch\n" + MY_MODULE
    path = _plain(tmp_path, *BY_HEAD_CHANGES, build=build, after=BY_HEAD)
    assert _failed(_results(path, "model/one-sequence", "decoding/one-sequence")) == {}
    bias = MISTAKEN["block 2's projection without its bias"][1]
    path = _plain(tmp_path, *BY_HEAD_CHANGES, build=build, after=f"{BY_HEAD}\n{bias}")
    (result,) = (r for r in _results(path, "model/one-seq") if r.check == "model/one-sequence")
    assert result.findings[0].tensor == "blocks.2.attn.out"


def test_a_map_of_names_adds_places(tmp_path):
    """Of a module that keeps its weights elsewhere."""
    path = _plain(
        tmp_path,
        after="    wrap(model)",
        build=dedent("""\
            import torch
            from minprefix.conformance.adapters import load_weights
            from {module} import GPT

            class Bare(torch.nn.Module):
                def __init__(self, inner):
                    super().__init__()
                    self.inner = [inner]  # no part of this module for PyTorch
                    for name, p in inner.named_parameters():
                        self.register_parameter(name.replace(".", "_"), p)
                def forward(self, *args):
                    out, kv = self.inner[0](*args)
                    return 1.01 * out, kv

            def wrap(model):
                for block in model.h:
                    block.attn = Bare(block.attn)

            def build(config, weights):
                return load_weights(GPT(config), weights)
            """),
    )
    names = tmp_path / "names.json"
    names.write_text('{"blocks.{i}.attn.out": "h.{i}.attn"}')
    for options, tensor in (("", "blocks.0.resid_mid"), (f"?names={names}", "blocks.0.attn.out")):
        results = _results(path, "model/one-sequence", options=options)
        assert results[0].findings[0].tensor == tensor
    assert results[0].findings[0].hints[0].startswith("is what comes out of h.0.attn; ")


# ---- how a prefix goes in ------------------------------------------------------------------------


def _in_layout(layout, P_at):
    """A module that takes a prefix in this layout and gives it to the plain one."""

    class Takes(torch.nn.Module):
        def __init__(self, config, weights):
            super().__init__()
            self.gpt, self.config = load_weights(GPT(config), weights), config

        def forward(self, input_ids, prefix):
            c, B = self.config, len(input_ids)
            P, groups = prefix.shape[P_at], layout.split()
            sizes = {"B": B, "L": c.n_layer, "2": 2, "NH": c.n_head, "P": P, "hs": c.head_size}
            shape = [math.prod(sizes[a] for a in group.split("*")) for group in groups]
            assert list(prefix.shape) == shape
            letters = layout.replace("*", " ").split()
            apart = prefix.reshape([sizes[a] for a in letters])
            if "B" not in letters:
                letters, apart = ["B", *letters], apart[None].expand(B, *apart.shape)
            kv = apart.permute([letters.index(a) for a in ("L", "2", "B", "NH", "P", "hs")])
            return self.gpt(input_ids, past_key_values=[(k, v) for k, v in kv])["logits"]

    return Takes


SEVERAL = ("B L 2 NH P hs", "B P L*2*NH*hs", "L 2 NH P hs")
OTHERS = tuple(name for name in OF_AN_ARGUMENT if " " in name and name not in SEVERAL)


@pytest.mark.parametrize(
    "layout", [*SEVERAL, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
)
def test_a_layout_is_found_by_trying_it(layout):
    at = [j for j, group in enumerate(layout.split()) if group == "P"]
    found = hugging_face(_in_layout(layout, *at))
    assert found.entry.layout == layout
    (result,) = run(load(found), select(["model/own-prefixes"]))
    assert result.status == "passed"


def test_a_layout_of_ones_own_can_be_said():
    build = _in_layout("hs 2 P B NH L", 2)
    with pytest.raises(InputError, match="no prefix goes through"):
        hugging_face(build)
    found = hugging_face(build, layout="(hs, 2, P, B, NH, L)")
    (result,) = run(load(found), select(["model/own-prefixes"]))
    assert result.status == "passed"


@pytest.mark.parametrize("layout", ["B L 2 NH P", "B L 2 NH P hs hs", "kv", "B T L 2 NH P hs"])
def test_a_layout_that_is_none_is_a_sentence(layout):
    with pytest.raises(InputError, match=r"LAYOUT is .*: expected 'tuple', 'cache' or an order"):
        checked(layout)


def test_a_layout_keeps_each_number_in_its_place():
    kv = torch.arange(2 * 3 * 2 * 2 * 4 * 5).reshape(2, 3, 2, 2, 4, 5)
    flat = laid_out(kv, checked("B, P, L*2*C"), SMALL)
    folded = flat.reshape(2, 4, 3, 2, 2, 5).permute(0, 2, 3, 4, 1, 5)
    assert torch.equal(folded, kv)
    assert all(torch.equal(k, kv[:, i, 0]) and torch.equal(v, kv[:, i, 1])
               for i, (k, v) in enumerate(laid_out(kv, "tuple", SMALL)))  # fmt: skip


def test_a_mask_of_the_text_alone_is_found_by_trying_it(tmp_path):
    changes = (
        (
            "seen = seen & mask[:, None, None, :].bool()",
            "mask = torch.cat([mask.new_ones(B, P), mask], 1)\n"
            "            seen = seen & mask[:, None, None, :].bool()",
        ),
    )
    path = _plain(tmp_path, *changes)
    assert load(f"hf:{path}").functions.entry.mask == "T"
    assert _failed(_results(path, "module/padded")) == {}
    path = _plain(tmp_path, *changes, build=f"MASK = 'P+T'\n{MY_MODULE}")
    assert set(_failed(_results(path, "module/padded"))) == {"module/padded", "module/padded-left"}


def test_a_module_is_built_once_for_its_weights():
    built = []

    def build(config, weights):
        built.append(config)
        return load_weights(GPT(config), weights)

    found = hugging_face(build)
    before = len(built)
    (result,) = run(load(found), select(["model/law-batch"]))
    assert result.status == "passed"
    assert len(built) == before + 1


# ---- weights by their names ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "name", "third"),
    [
        ("transformer.h.2.attn.c_attn.weight", "h.2.attn.c_attn.weight", None),
        ("layers.0.attention.q_proj.weight", "h.0.attn.c_attn.weight", 0),
        ("blocks.11.self_attn.W_k.bias", "h.11.attn.c_attn.bias", 1),
        ("trf_blocks.1.att.W_value.weight", "h.1.attn.c_attn.weight", 2),
        ("trf_blocks.1.att.out_proj.bias", "h.1.attn.c_proj.bias", None),
        ("encoder.layers.3.self_attn.in_proj_weight", "h.3.attn.c_attn.weight", None),
        ("layers.4.attention.o_proj.weight", "h.4.attn.c_proj.weight", None),
        ("gpt_neox.layers.5.attention.dense.weight", "h.5.attn.c_proj.weight", None),
        ("gpt_neox.layers.5.mlp.dense_h_to_4h.weight", "h.5.mlp.c_fc.weight", None),
        ("gpt_neox.layers.5.mlp.dense_4h_to_h.weight", "h.5.mlp.c_proj.weight", None),
        ("layers.0.input_layernorm.weight", "h.0.ln_1.weight", None),
        ("layers.0.post_attention_layernorm.weight", "h.0.ln_2.weight", None),
        ("layers.0.norm2.bias", "h.0.ln_2.bias", None),
        ("h.0.ffn.up.weight", "h.0.mlp.c_fc.weight", None),
        ("h.0.ffn.down.weight", "h.0.mlp.c_proj.weight", None),
        ("h.0.linear2.weight", "h.0.mlp.c_proj.weight", None),
        ("blocks.0.fc1.weight", "h.0.mlp.c_fc.weight", None),
        ("transformer.wpe.weight", "wpe.weight", None),
        ("model.embed_positions.weight", "wpe.weight", None),
        ("tok_emb.weight", "wte.weight", None),
        ("final_norm.bias", "ln_f.bias", None),
        ("out_head.weight", "lm_head.weight", None),
    ],
)
def test_a_parameter_is_known_by_the_names_that_people_give(parameter, name, third):
    assert role(parameter) == (name, third)


def test_the_weights_lie_as_each_module_keeps_them():
    weights = {n: torch.tensor(a) for n, a in weights_of(SMALL).items()}
    model = load_weights(GPT(SMALL), weights)
    assert next(model.parameters()).dtype == torch.float64
    square = model.h[1].attn.c_proj
    x = torch.randn(4, SMALL.n_embd, dtype=torch.float64)
    right = x @ weights["h.1.attn.c_proj.weight"] + weights["h.1.attn.c_proj.bias"]
    assert torch.allclose(square(x), right)
    assert homes_by_value(model, weights) == homes_by_name(model, weights)


def test_parameters_of_other_names_are_loaded_by_their_order_and_shapes():
    class Odd(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            for name, shape in config.shapes().items():
                number = name.split(".")[1] if name.startswith("h.") else "x"
                inner = self
                for part in ("stack", number):
                    if not hasattr(inner, part):
                        inner.add_module(part, torch.nn.Module())
                    inner = getattr(inner, part)
                count = len(list(inner.parameters()))
                inner.register_parameter(f"a{count}", torch.nn.Parameter(torch.zeros(shape)))

    weights = {n: torch.tensor(a) for n, a in weights_of(SMALL).items()}
    model = load_weights(Odd(SMALL), weights)
    for got, want in zip(model.stack.x.parameters(), ("wte", "wpe", "ln_f"), strict=False):
        assert torch.equal(got, weights[f"{want}.weight"])
    assert torch.equal(model.stack.get_parameter("2.a10"), weights["h.2.mlp.c_proj.weight"])


def test_a_weight_without_a_place_is_a_sentence():
    weights = {n: torch.tensor(a) for n, a in weights_of(SMALL).items()}
    with pytest.raises(
        InputError, match=r"finds no place for wte.weight \(13, 10\) in Linear, whose"
    ):
        load_weights(torch.nn.Linear(2, 3), weights)
    apart = replace(SMALL, tie_word_embeddings=False)
    weights = {n: torch.tensor(a) for n, a in weights_of(apart).items()}
    with pytest.raises(NotImplementedError, match="GPT has no head of its own"):
        load_weights(GPT(SMALL), weights)


# ---- a loss of labels ----------------------------------------------------------------------------


def test_the_right_loss_is_no_mistake_and_each_mistake_is_its_own():
    rng = np.random.default_rng(0)
    texts = []
    for T in (5, 7):
        labels = rng.integers(0, 13, T)
        labels[:2] = -100
        texts.append((rng.normal(0, 1, (T, 13)), labels))
    for said, loss in MISTAKES.items():
        assert said in mistake([(*each, loss(*each)) for each in texts])
    for logits, labels in texts:
        right = torch.nn.functional.cross_entropy(
            torch.tensor(logits[:-1]), torch.tensor(labels[1:])
        )
        assert mistake([(logits, labels, float(right))]) == ""


def test_a_loss_that_is_nan_gets_no_reason_of_another_mistake(tmp_path):
    """Texts of one target have none left; a mask that leaves nothing to see gives NaN, too."""
    shifted = "logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()"
    path = _plain(tmp_path, (shifted, "logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten()"))
    (result,) = _results(path, "module/labels")
    said = [hint for hint in result.findings[0].hints if "what one gets" in hint]
    assert said == [
        "is what one gets if the labels are shifted twice: the module shifts them itself"
    ]


# ---- what cannot be graded is a sentence ---------------------------------------------------------

LINEAR = "torch.nn.Linear(2, 3)"


def _file(body, *others):
    lines = ["import torch", "from tests.plain_gpt2 import GPT", *others]
    lines += [
        "from minprefix.conformance.adapters import load_weights",
        "def build(config, weights):",
    ]
    return "\n".join([*lines, *(f"    {row}" for row in body.splitlines())])


TAKES = "class M(torch.nn.Module):\n    def forward(self, input_ids, {}): return {}"

WRONG_FILES = {
    "build = 3": "has no function build: expected build(config, weights)",
    "x = 1": "has no function build: expected build(config, weights)",
    "def build(config): pass": r"build(config) of .* has other arguments: expected build(config,",
    _file("return None"): "gives a NoneType: expected a torch.nn.Module with the weights in it",
    _file("raise KeyError('wte')"): "build of .* raised KeyError: 'wte'",
    _file(f"return {LINEAR}"): (
        r"forward(input) of Linear has no argument that takes a prefix: expected prefix_kv, prefix "
        "or past_key_values; PREFIX = 'name' in the file names another"
    ),
    _file(f"return {LINEAR}", "PREFIX = 'memory'"): (
        r"PREFIX is 'memory', which is no argument of forward(input) and no parameter of Linear"
    ),
    _file("return load_weights(GPT(config), weights)", "LAYOUT = 'B L'"): (
        "LAYOUT is 'B L': expected"
    ),
    _file("return load_weights(GPT(config), weights)", "MASK = 'P'"): "MASK is 'P': expected 'P+T'",
    _file("return load_weights(M(config), weights)", "class M(GPT):", "    def forward(self, "
          "input_ids, prefix=None): return super().forward(input_ids)"): (
        "no gradient comes back to the prefix: it is not used, or it is detached"
    ),
    _file("return load_weights(GPT(config), weights)", "NAMES = {'blocks.{i}.x': 'h.{i}.x'}"): (
        "names 'blocks.{i}.x': expected one of blocks.{i}.ln_1.out,"
    ),
    _file("return load_weights(GPT(config), weights)", "NAMES = {'blocks.{i}.attn.out': 'h.0'}"): (
        "has 'h.0' for blocks.{i}.attn.out: expected the path of a module, with {i}"
    ),
    _file("return load_weights(M(config), weights)", "class M(GPT):", "    def forward(self, "
          "input_ids, past_key_values=None):\n        return super().forward(input_ids, "
          "past_key_values)['logits'].sum()"): (
        r"forward gives a Tensor (): expected logits (B, T, V), alone, first of a tuple, or as"
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG_FILES)))
def test_a_file_that_cannot_be_graded_is_a_sentence(tmp_path, number):
    source, sentence = list(WRONG_FILES.items())[number]
    with pytest.raises(InputError) as caught:
        load(f"hf:{_write(tmp_path, source)}")
    start, _, end = sentence.partition(" .* ")
    assert start in str(caught.value)
    assert end in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "my_ops.py"], "--model is for a module of PyTorch, and my_ops.py is none"),
        (["numpy", "--dtype", "float32"], "--dtype is for a module of PyTorch, and numpy is none"),
        (["--names", "x.json"], "--names is for a module of PyTorch, and nothing is none"),
        (["numpy", "--model", "hf:x.py"], "--model hf:x.py or numpy: give one of them"),
        (["--model", "hf:none.py"], "none.py does not exist: expected a Python file"),
    ],
)
def test_options_of_a_module_are_for_a_module(arguments, sentence, capsys):
    assert main(["check", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_map_that_cannot_be_read_is_a_sentence(tmp_path):
    path, names = _plain(tmp_path), tmp_path / "names.json"
    with pytest.raises(InputError, match=r"--names .*names.json cannot be read: No such file"):
        load(f"hf:{path}?names={names}")
    names.write_text("{")
    with pytest.raises(InputError, match=r"--names .*names.json is no JSON"):
        load(f"hf:{path}?names={names}")
    names.write_text('{"blocks.{i}.attn.out": "layers.{i}.attn"}')
    found = load(f"hf:{path}?names={names}").functions
    with pytest.raises(InputError, match=r"has 'layers.0.attn', which .* has not: its modules are"):
        found.run_model(model_case("one-sequence"))


def test_a_peft_model_is_found_without_being_named_one(tmp_path):
    assert load(f"hf:{_write(tmp_path, PEFT)}").functions.entry.is_parameter


def test_a_plain_module_is_no_peft_model(tmp_path):
    with pytest.raises(InputError, match=r"gives no PEFT model: expected one, or hf:"):
        load(f"peft:{_plain(tmp_path)}")


def test_a_configuration_that_a_module_has_not_is_left_out(tmp_path):
    tied = MY_MODULE.replace(
        "    return", "    if not config.tie_word_embeddings:\n        raise "
        "NotImplementedError('tied only')\n    return")  # fmt: skip
    results = {r.check: r for r in _results(_plain(tmp_path, build=tied), "separate-head", "drawn")}
    assert results["model/separate-head"].status == "not implemented"
    assert results["model/drawn"].status == "passed"
    assert "run_model: tied only" in results["model/drawn"].not_implemented


def test_pytorch_is_imported_for_a_module_alone():
    program = (
        "import sys; import minprefix.conformance.adapters; "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_library_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs torch, which is not installed: pip install torch"):
        load("hf:my_module.py")


# ---- the page ------------------------------------------------------------------------------------


def test_the_module_of_the_page_passes_and_its_report_is_the_one_that_is_shown(tmp_path):
    page = (Path(__file__).parents[1] / "docs/check.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "def build" in block)
    (report,) = (block for block in blocks if "blocks.2.attn.z before it" in block)
    assert _failed(_results(_write(tmp_path, code), "model/one-sequence")) == {}
    bug = "model.transformer.h[2 % config.n_layer].attn.c_proj.bias.data.zero_()"
    wrong = code.replace("return load_weights", "model = load_weights")
    wrong += f"    {bug}\n    return model\n"
    said = text(_results(_write(tmp_path, wrong), "model/one-sequence"), "my_module")
    assert report in said


@pytest.mark.long
def test_compare_takes_a_module(tmp_path, capsys):
    name = "block 1's projection loaded as (in, out)"
    path = _plain(tmp_path, after=MISTAKEN[name][1])
    assert main(["compare", "reference", f"hf:{path}"]) == 1
    assert "blocks.1.attn.out" in capsys.readouterr().out
