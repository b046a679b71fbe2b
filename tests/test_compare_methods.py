"""`minprefix compare-methods`, and the comparisons of docs/rivals.md."""

import json
import re
from dataclasses import asdict, replace
from statistics import mean, stdev

import pytest

from minprefix import cli
from minprefix.comparison import cells, sweep, table
from minprefix.comparison.cells import Bench, Plan
from minprefix.comparison.entrants import STARTS, read_entrant
from minprefix.comparison.sweep import CELLS, COSTS, RESULTS, compare_methods
from minprefix.errors import InputError
from minprefix.storage.reading import read_json
from tools import rivals

PLAN = Plan(
    ("prompt-tuning:length=2", "lora:rank=1,lr=1e-3"), (1e-4, 1e-2), (0, 1), (4,),
    task="letter", steps=2, batch_size=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _little_data(monkeypatch):
    for name, n in (("TRAIN", 6), ("VALID", 3), ("TEST", 3), ("UNSEEN", 2), ("MOST_TOKENS", 4)):
        monkeypatch.setattr(cells, name, n)
    monkeypatch.setattr(cells, "TIMED", 1)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison: its folder."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        _little_data.__wrapped__(patch)
        compare_methods(PLAN, out, progress=False)
    return out


def cells_in(out):
    return [read_json(path, "a cell") for path in sorted((out / CELLS).iterdir())]


def test_the_first_seed_tries_each_learning_rate_and_the_others_take_the_best(compared):
    done = cells_in(compared)
    assert len(done) == 2 + 1 + 1 + 1  # two rates and a seed; one rate and a seed
    first = [c for c in done if c["method"] == 0 and c["seed"] == 0]
    best = min(first, key=lambda c: c["valid_loss"])["lr"]
    assert [c["lr"] for c in done if c["method"] == 0 and c["seed"] == 1] == [best]
    assert {c["lr"] for c in done if c["method"] == 1} == {1e-3}
    rows = read_json(compared / RESULTS, "the results")["rows"]
    assert [(row["label"], row["lr"]) for row in rows] == [
        ("prompt-tuning length=2", best), ("lora rank=1", 1e-3),
    ]  # fmt: skip


def test_a_row_is_the_mean_and_the_standard_deviation_over_the_seeds(compared):
    row = read_json(compared / RESULTS, "the results")["rows"][1]
    done = [c for c in cells_in(compared) if c["method"] == 1]
    losses = [c["tests"]["unseen"]["loss"] for c in done]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    assert row["tests"]["unseen"]["loss"] == pytest.approx([mean(losses), stdev(losses)])
    assert row["valid_loss"][0] == pytest.approx(mean(c["valid_loss"] for c in done))


def test_a_method_costs_its_parameters_its_file_its_time_and_its_memory(compared):
    prompt, lora = read_json(compared / COSTS, "the costs", list)
    assert prompt["parameters"] == 2 * 160
    assert lora["parameters"] == 4 * (160 + 480)
    for cost in (prompt, lora):
        assert 0 < cost["file_bytes"] - 4 * cost["parameters"] < 1500  # names and shapes
        assert cost["share"] == cost["parameters"] / 1442240
        assert 0 < cost["step_seconds"] < 60
        assert 5.8e6 < cost["memory_bytes"] < 5e7


def test_a_comparison_goes_on_with_the_cells_that_are_missing(compared, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(sweep, "Bench", lambda plan: Counting(plan, begun))
    out = tmp_path / "out"
    (out / CELLS).mkdir(parents=True)
    for path in compared.rglob("*.json"):
        (out / path.relative_to(compared)).write_bytes(path.read_bytes())
    lost = next(path for path in (out / CELLS).iterdir() if "lora" in path.name)
    before = read_json(lost, "a cell")
    lost.unlink()
    rows = compare_methods(PLAN, out, resume=True, progress=False)
    assert len(begun) == 1
    assert read_json(lost, "a cell") | {"cpu_seconds": 0} == before | {"cpu_seconds": 0}
    were = [table.Row.of(row) for row in read_json(compared / RESULTS, "the results")["rows"]]
    assert rows == were


class Counting(Bench):
    def __init__(self, plan, begun):
        super().__init__(plan)
        self.begun = begun

    def carry_out(self, cell):
        self.begun.append(cell)
        return super().carry_out(cell)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 3}, "--steps was 2 in .* and is 3: give the same options, or another --out"),
        ({"lrs": (1.0,)}, r"--lrs was \[0.0001, 0.01\] in .* and is \[1.0\]"),
        ({"task": "swap"}, "--task was 'letter' in .* and is 'swap'"),
    ],
)
def test_a_changed_option_is_refused_by_name(compared, change, said):
    with pytest.raises(InputError, match=said):
        compare_methods(replace(PLAN, **change), compared, resume=True, progress=False)


def test_a_folder_that_is_taken_and_one_without_a_comparison_are_refused(compared, tmp_path):
    with pytest.raises(InputError, match="already holds a comparison: give --resume, or another"):
        compare_methods(PLAN, compared, progress=False)
    with pytest.raises(InputError, match=r"holds no comparison .* leave out --resume"):
        compare_methods(PLAN, tmp_path / "none", resume=True, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is taken: choose a new or an empty folder"):
        compare_methods(PLAN, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_training_that_diverges_is_no_choice(tmp_path):
    plan = replace(PLAN, methods=("full:lr=1e-3/1e30", "bitfit:lr=1e30"), seeds=(0,), steps=3)
    full, bitfit = compare_methods(plan, tmp_path / "out", progress=False)
    assert full.lr == 1e-3
    assert full.valid_loss is not None
    assert bitfit.lr is None
    assert bitfit.tests == {}
    assert "diverged" in table.text([full, bitfit])
    failed = [c["failed"] for c in cells_in(tmp_path / "out") if "failed" in c]
    assert len(failed) == 2
    assert all(re.fullmatch(r"the .* became \S+ at step \d", s) for s in failed)


def test_a_budget_of_seconds_is_as_many_steps_as_fit_into_it():
    plan = replace(PLAN, steps=None, seconds=3.0)
    assert sweep._steps(plan, {"step_seconds": 0.25}) == 12
    assert sweep._steps(plan, {"step_seconds": 30.0}) == 1
    assert sweep._steps(PLAN, {"step_seconds": 30.0}) == 2


def test_each_seed_has_its_own_examples_which_all_methods_share():
    bench = Bench(PLAN)
    assert bench.subset(4, 0) == bench.subset(4, 0) != bench.subset(4, 1)
    assert len(bench.subset(4, 0)) == 4
    assert bench.subset(0, 0) == bench.subset(6, 1) == bench.train


@pytest.mark.long
def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.undo()  # a process of its own has all the data
    a, b = (compare_methods(PLAN, tmp_path / str(n), n, progress=False) for n in (1, 2))
    strip = {"step_seconds": 0, "memory_bytes": 0}
    assert [asdict(row) | strip for row in a] == [asdict(row) | strip for row in b]


# ---- methods as they are typed ------------------------------------------------------------------


@pytest.mark.parametrize("name", STARTS)
def test_each_method_starts_with_its_own_options(name):
    bench = Bench(replace(PLAN, methods=(name,)))
    assert bench.starts[0].n_parameters > 0
    assert read_entrant(name).label == name


def test_a_typed_method_has_its_options_and_rates():
    entrant = read_entrant("lora:rank=4,alpha=8,targets=attn.c_attn/mlp.c_fc,lr=1e-3/3e-3")
    assert entrant.options == {"rank": 4, "alpha": 8.0, "targets": ("attn.c_attn", "mlp.c_fc")}
    assert entrant.lrs == (1e-3, 3e-3)
    assert entrant.label == "lora rank=4 alpha=8.0 targets=attn.c_attn/mlp.c_fc"


LETTER = ("--task", "letter")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "--data is missing: give --data, --valid and --test, or --task"),
        ((*LETTER, "--data", "x.csv"), "--task has pairs of its own: leave out --data, or --task"),
        ((*LETTER, "--method", "lorax"), "method 'lorax': expected one of prefix, "),
        ((*LETTER, "--method", "lora:rnk=2"), "'rnk=2' is no option: expected rank, alpha"),
        ((*LETTER, "--method", "lora:rank=x"), "rank is 'x': expected a number"),
        ((*LETTER, "--method", "lora:rank=999"), "rank is 999: expected 1 to 160"),
        ((*LETTER, "--method", "lora:lr=0"), "lr is '0': expected a number"),
        ((*LETTER, "--method", "prefix:init=zer"), "init is 'zer': expected normal, zero or text"),
        ((*LETTER, "--method", "prefix:length=0"), "length is 0: expected at least 1 slot"),
        ((*LETTER, "--method", "full", "--method", "full"), "--method has full twice"),
        ((*LETTER, "--lrs", "0"), "--lrs is [0.0]: expected numbers above 0"),
        ((*LETTER, "--seeds", "-1"), "--seeds is [-1]: expected numbers above 0"),
        ((*LETTER, "--seconds", "0"), "--seconds is 0.0: expected numbers above 0"),
        ((*LETTER, "--picture", "a.gif"), "expected a name that ends in .png or .svg"),
        ((*LETTER, "--examples-picture", "a.png"), "draws the sizes of --examples: give some"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_folder(argv, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["compare-methods", "--out", str(out), *argv]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_the_command_compares_on_files_and_draws(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"source": f"name[{i}]", "target": "The film"} for i in range(3)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    files = [word for name in ("data", "valid", "test") for word in (f"--{name}", str(path))]
    argv = [
        "compare-methods", *files, "--method", "prefix:length=1", "--method", "bitfit", "--lrs",
        "1e-3", "--seeds", "0", "--examples", "1", "2", "--steps", "1", "--out",
        str(tmp_path / "out"), "--picture", str(tmp_path / "a.png"), "--examples-picture",
        str(tmp_path / "b.svg"), "--json", str(tmp_path / "rows.json"),
    ]  # fmt: skip
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "1 examples" not in said
    assert "1 example\n" in said
    assert "2 examples" in said
    assert "test exact match %" in said
    assert "slot errors" not in said
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["label"], row["examples"]) for row in rows] == [
        ("prefix length=1", 1), ("bitfit", 1), ("prefix length=1", 2), ("bitfit", 2),
    ]  # fmt: skip
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert "training pairs" in (tmp_path / "b.svg").read_text()


# ---- docs/rivals.md -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", rivals.COMPARISONS)
def test_the_comparison_of_the_page_runs(name, tmp_path):
    plan = rivals.smoke(rivals.COMPARISONS[name])
    record = rivals.carry_out({name: plan}, tmp_path, jobs=1, progress=False)
    assert len(record[name]["rows"]) == 2 * len(plan.examples)
    assert all(row["valid_loss"][0] > 0 for row in record[name]["rows"])


def test_the_page_has_the_tables_of_its_record():
    record = read_json(rivals.DOCS / "rivals.json", "the results")
    text = (rivals.DOCS / "rivals.md").read_text(encoding="utf-8")
    assert rivals.page(text, record) == text
    for name, plan in rivals.COMPARISONS.items():
        asked = json.loads(json.dumps(asdict(plan)))
        assert record[name]["plan"] == asked
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (rivals.DOCS / picture).exists()
    changed = text.replace("| full |", "| fool |")
    assert changed != text == rivals.page(changed, record)
