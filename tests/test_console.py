"""No console loses a result: whatever it can show, every command ends as it would on another."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

import minprefix
from minprefix import Config, console
from minprefix.cli import main
from tests.conftest import random_model

PAIRS = [("Café → 😀", "Un → petit é."), ("name[Ж]", "Ж 😀"), ("x", "y")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder whose name and files hold what neither cp1252 nor ascii has."""
    folder = tmp_path_factory.mktemp("Жé → 😀")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([f"{s}\n{t}" for s, t in PAIRS], 300, special_tokens=["<|end|>"])
    model = random_model(
        Config(2, 2, 16, bpe.get_vocab_size(), 64, bos_token_id=0, eos_token_id=0), dtype="float32"
    )
    model.tokenizer = bpe._tokenizer
    model.save(folder / "mödel")
    lines = [json.dumps({"source": s, "target": t}, ensure_ascii=False) for s, t in PAIRS]
    (folder / "dåta.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "опс.py").write_text(
        "from minprefix.ops import reference\n"
        "from minprefix.ops.reference import *\n\n\ndef gelu(x):\n"
        "    print('→ 😀')\n    return reference.gelu(x)\n",
        encoding="utf-8",
    )
    train = ["train", "--model", "mödel", "--data", "dåta.jsonl", "--steps", "2", "--out", "ŕun"]
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main([*train, "--template", "{source} → {target}", "--prefix-length", "2"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def on(monkeypatch, home):
    """Run a command as on a console of this encoding. -> the status, what it printed, and what it
    said on standard error."""

    def run(encoding, *argv, stdin=b""):
        streams = {n: io.TextIOWrapper(io.BytesIO(), encoding, "strict") for n in ("out", "err")}
        with monkeypatch.context() as patch:
            patch.chdir(home)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding, "strict"))
            patch.setattr(sys, "stdout", streams["out"])
            patch.setattr(sys, "stderr", streams["err"])
            try:
                status = main([str(a) for a in argv])
            except SystemExit as stop:
                status = stop.code
        said = []
        for stream in streams.values():
            stream.flush()
            said.append(stream.buffer.getvalue().decode(encoding))
        return status, *said

    return run


ENCODINGS = ["cp1252", "ascii", "latin-1", "utf-8"]
MODEL = ["--model", "mödel"]
COMMANDS = {
    "generate": ["generate", *MODEL, "--prefix", "ŕun", "--prompt", "Ж", "--prompt", "→"],
    "generate --data": ["generate", *MODEL, "--prefix", "ŕun", "--data", "dåta.jsonl"],
    "inspect": ["inspect", "ŕun"],
    "inspect a model": ["inspect", "mödel"],
    "diff": ["diff", "ŕun", "ŕun"],
    "verify": ["verify", "ŕun", *MODEL],
    "evaluate": ["evaluate", *MODEL, "--data", "dåta.jsonl", "--ter", "--out", "{new}"],
    "train": ["train", *MODEL, "--data", "dåta.jsonl", "--steps", "2", "--out", "{new}"],
    "export": ["export", "ŕun", "--to", "peft", "--base", "mödel→", "--out", "{new}"],
    "combine": ["combine", "ŕun", "ŕun", "--how", "concatenate", *MODEL, "--out", "{new}"],
    "prune": ["prune", "ŕun", *MODEL, "--keep", "1", "--data", "dåta.jsonl", "--out", "{new}"],
    "view": ["view", *MODEL, "--prefix", "ŕun", "--prompt", "Ж", "--out", "{new}.html"],
    "plot": [
        "plot",
        "attention",
        *MODEL,
        "--prefix",
        "ŕun",
        "--prompt",
        "Ж→",
        "--out",
        "{new}.png",
    ],
    "plot loss": ["plot", "loss", "ŕun", "--out", "{new}.svg"],
    "check --new": ["check", "--new", "{new}.py"],
    "check --list": ["check", "--list"],
    "compare": ["compare", "numpy", "опс.py", "--json", "{new}"],
    "vectors": ["vectors", "write", "{new}", "--only", "gelu"],
    "lessons": ["lessons"],
    "step": ["step", *MODEL, "--prefix", "ŕun", "--prompt", "Ж", "--target", "→ 😀"],
    "help": ["generate", "--help"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_depends_on_what_its_console_can_show(on, tmp_path, name):
    if name == "lessons":
        pytest.importorskip("jupytext")
    expected = None
    for encoding in ("utf-8", "cp1252", "ascii"):

        def spelled(text, encoding=encoding):
            return text.encode(encoding, "backslashreplace").decode(encoding)

        new = str(tmp_path / f"né→w {encoding}")
        argv = [a.format(new=new) if "{new}" in a else a for a in COMMANDS[name]]
        status, out, err = on(encoding, *argv, stdin="p 'Ж→'\nq\n".encode())
        assert (status, "Traceback" in err) == (0, False), (encoding, err)
        out = out.replace(spelled(new), "NEW")
        expected = expected or out
        if name in ("inspect", "export", "check --new", "diff", "generate", "lessons", "help"):
            assert out == spelled(expected)  # nothing that differs from run to run


def test_answers_are_json_on_every_console(on):
    answers = []
    for encoding in ENCODINGS:
        status, out, _ = on(encoding, *COMMANDS["generate --data"])
        assert status == 0
        answers.append([json.loads(line) for line in out.splitlines()])
    assert all(found == answers[0] for found in answers)
    assert [(a["source"], a["target"]) for a in answers[0]] == PAIRS
    raw = on("utf-8", *COMMANDS["generate --data"])[1]
    assert "Café → 😀" in raw  # where it can be shown it is


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_sentence_about_bad_input_can_be_said_everywhere(on, encoding):
    for argv, said in (
        (["inspect", "./né→😀"], "model folder './né→😀' does not exist"),
        (["generate", *MODEL, "--prefix", "ŕun", "--data", "→.jsonl"], "requests →.jsonl: No such"),
        (["generate", *MODEL, "--prompt", "a\udcff\ud800"], r"text 'a\udcff\ud800' is not UTF-8"),
        (["generate", *MODEL, "--prompt", "a", "--prefix", "\ud800"], r"'\ud800' does not exist"),
        (["train", *MODEL, "--data", "\udcff.csv", "--out", "x"], r"\udcff.csv: No such file"),
        (["danse→"], "there is no command danse→"),
        (["train", "--learnîng→", "1"], "there is no option --learnîng→"),
    ):
        status, _, err = on(encoding, *argv)
        assert status == 2
        spelled = said.encode(encoding, "backslashreplace").decode(encoding)
        assert spelled in err.splitlines()[-1]


def test_demo_and_its_bar_end_on_a_console_that_cannot_show_them(on, tmp_path, monkeypatch):
    from minprefix.data import demo

    for name, n in (("TRAIN", 20), ("VALID", 4), ("TEST", 2)):
        monkeypatch.setattr(demo, name, n)
    monkeypatch.setattr("minprefix.cli.demo.NEW_TOKENS", 2)
    monkeypatch.setattr("minprefix.prefixes.verify.SAMPLES", 1)
    out = tmp_path / "→ new"
    call = ["demo", "--steps", "2", "--batch-size", "4", "--out", out]
    status, text, err = on("cp1252", *call)
    assert status in (0, 1), err  # 1: so short a training may make it worse
    assert r"\u2192 new" in text
    assert "2/2" in err
    assert (out / "samples.md").exists()


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_a_process_on_such_a_console_prints_its_answers_and_writes_utf_8(home, tmp_path, env):
    def run(*argv):
        return subprocess.run(
            [sys.executable, "-m", "minprefix", *argv],
            cwd=home,
            env={k: v for k, v in os.environ.items() if k not in ("LC_ALL", "PYTHONUTF8")} | env,
            capture_output=True,
            check=False,
        )

    # the arguments are ASCII: what a process makes of others depends on the locale, too
    (home / "m").exists() or (home / "m").symlink_to("mödel")
    (home / "r").exists() or (home / "r").symlink_to("ŕun")
    (home / "d.jsonl").exists() or (home / "d.jsonl").symlink_to("dåta.jsonl")
    call = ["generate", "--model", "m", "--prefix", "r", "--data", "d.jsonl"]
    printed, out = run(*call), tmp_path / "a.jsonl"
    assert (printed.returncode, printed.stderr) == (0, b"")
    answers = [json.loads(line) for line in printed.stdout.decode("ascii").splitlines()]
    assert [(a["source"], a["target"]) for a in answers] == PAIRS
    assert run(*call, "--out", str(out)).returncode == 0
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == answers
    inspected = run("inspect", "r")
    assert inspected.returncode == 0, inspected.stderr
    assert rb"{source} \u2192 {target}" in inspected.stdout


# ---- what comes in ----


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "script", [b"# \xc3\xa9\x81 \xff\np 1 + 1\nq\n", b"\xef\xbb\xbfp 1 + 1\r\nq\r\n", b"p 1 + 1"]
)
def test_step_reads_a_pipe_of_any_bytes(on, encoding, script):
    status, out, _ = on(encoding, "step", *MODEL, "--prompt", "xyz", stdin=script)
    assert status == 0
    assert "\n2\n" in out


@pytest.mark.parametrize("to_file", [False, True])
def test_an_implementation_that_prints_is_graded_on_every_console(home, tmp_path, to_file):
    call = [sys.executable, "-m", "minprefix", "check", "опс.py", "--only", "gelu/usual"]
    env = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with open(tmp_path / "report", "w+b") as report:
        out = report if to_file else subprocess.PIPE
        done = subprocess.run(call, cwd=home, env=env, stdout=out, stderr=subprocess.PIPE)
        report.seek(0)
        said = report.read() if to_file else done.stdout
    assert done.returncode == 0, said + done.stderr
    assert b"the only check passed" in said
    assert rb"\u2192" in done.stderr


# ---- names that are not UTF-8, and files ----


@pytest.mark.skipif(sys.platform != "linux", reason="only there a name may be of any bytes")
def test_names_that_are_not_utf_8_are_recorded_and_found_again(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    name = os.fsdecode(b"caf\xe9.jsonl")
    data = tmp_path / name
    data.write_bytes((home / "dåta.jsonl").read_bytes())
    out, scores = tmp_path / os.fsdecode(b"r\xff"), tmp_path / os.fsdecode(b"s\xff")
    model = tmp_path / os.fsdecode(b"m\xff\xfe")
    model.symlink_to(home / "mödel")
    train = [
        "train",
        "--model",
        model,
        "--data",
        data,
        "--valid",
        data,
        "--steps",
        "2",
        "--out",
        out,
    ]
    evaluate = ["evaluate", "--model", model, "--prefix", out, "--data", data, "--out", scores]
    for argv in (train, ["verify", out], ["inspect", out], evaluate):
        assert main([str(a) for a in argv]) == 0, capsys.readouterr().err
    about = json.loads((scores / "metrics.json").read_text("utf-8"))["about"]
    assert (about["data"], about["prefix"]) == (str(data), str(out))
    page = [
        "view",
        "--model",
        model,
        "--prefix",
        out,
        "--prompt",
        "x",
        "--out",
        tmp_path / f"{name}.html",
    ]
    mixed = ["combine", out, out, "--how", "average", "--out", tmp_path / os.fsdecode(b"m\xff")]
    plot = ["plot", "loss", out, "--out", tmp_path / os.fsdecode(b"p\xff.svg")]
    answers = ["generate", *MODEL, "--prefix", out, "--data", data, "--out", tmp_path / f"a{name}"]
    for argv in (page, mixed, plot, answers):
        assert main([str(a) for a in argv]) == 0, capsys.readouterr().err


def opened_as_text(source):
    """Calls that open a file as text without saying its encoding, or that write one whose line
    ends depend on the system: their lines."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        name = getattr(function, "id", None) or getattr(function, "attr", "")
        of = getattr(getattr(function, "value", None), "id", "")
        given = {k.arg for k in call.keywords}
        words = [part.value for part in ast.walk(call) if isinstance(part, ast.Constant)]
        modes = [w for w in words if isinstance(w, str) and set(w) <= set("rwaxbt+")]
        if of in ("reading", "writing"):  # the package's own, which open as UTF-8
            continue
        if name not in ("open", "read_text", "write_text", "run", "Popen"):
            continue
        if isinstance(function, ast.Name) and name != "open":  # the package's own
            continue
        if name in ("run", "Popen") and not given & {"text", "universal_newlines", "errors"}:
            continue
        if of == "os" or (name == "open" and any("b" in mode for mode in modes)):
            continue
        writes = name == "write_text" or any(set(mode) & set("wax") for mode in modes)
        if "encoding" not in given or (writes and name != "Popen" and "newline" not in given):
            found.append(call.lineno)
    return found


def test_every_file_is_utf_8_whatever_the_system_prefers():
    root = Path(minprefix.__file__).parent
    for path in sorted(root.rglob("*.py")):
        lines = opened_as_text(path.read_text(encoding="utf-8"))
        assert not lines, f"{path.relative_to(root)}: give encoding and newline in lines {lines}"


def test_the_search_for_such_calls_finds_them():
    wrong = (
        "open(p)",
        "open(p, 'w', encoding='utf-8')",
        "p.open('r')",
        "p.read_text()",
        "p.write_text(t, encoding='utf-8')",
        "subprocess.run(a, text=True)",
    )
    right = (
        "open(p, 'rb')",
        "open(p, 'a', encoding='utf-8', newline='\\n')",
        "p.read_text(encoding='utf-8')",
        "os.open(p, 0)",
        "reading.read_text(p, 'it')",
        "subprocess.run(a, check=True)",
    )
    assert [opened_as_text(line) for line in wrong] == [[1]] * len(wrong)
    assert [opened_as_text(line) for line in right] == [[]] * len(right)


def test_a_stream_that_does_not_encode_is_left_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    console.take_every_character()
    assert console.takes_unicode()
    print("→")
    assert stream.getvalue() == "→\n"


# ---- options and commands that nearly exist ----


def said(argv, capsys):
    """-> the exit status, what was printed, and the last line on standard error."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    return stop.value.code, out, (err.splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        # nothing of what is missing, too
        ("train --leraning-rate 1", "train: error: there is no option --leraning-rate: did"),
        ("train --leraning-rate 1", "did you mean --lr?"),
        ("train --learning-rate=1", "no option --learning-rate: did you mean --lr?"),
        ("train --learning_rate 1", "no option --learning_rate: did you mean --lr?"),
        ("train -lr 1", "no option -lr: did you mean --lr?"),
        ("train --prefix_length 5", "did you mean --prefix-length?"),
        ("train --batch 5", "did you mean --batch-size"),
        ("train --num_train_epochs 3", "did you mean --epochs?"),
        ("train --resum", "did you mean --resume"),
        ("train --output_dir x", "did you mean --out?"),
        ("evaluate --beam 2", "evaluate: error: there is no option --beam: did you mean --beams?"),
        ("generate --tempature 1", "did you mean --temperature?"),
        ("generate --max-tokens 1", "did you mean --max-new-tokens?"),
        ("generate --raw --promt x --prompt y", "did you mean --prompt?"),
        ("combine a b --weight 1 -- -x", "there is no option --weight: did you mean --weights?"),
        ("export x --too peft", "did you mean --to?"),
        ("check --implementation x", "there is no option --implementation: minprefix check --help"),
        ("check a.py --qqqq", "there is no option --qqqq: minprefix check --help lists them"),
        ("vectors check v --onyl x", "vectors check: error: there is no option --onyl: did you"),
        ("vectors chek v", "vectors: error: there is no command chek: did you mean check?"),
        ("plot attenton", "there is no command attenton: did you mean attention?"),
        ("trian --out x", "minprefix: error: there is no command trian: did you mean train?"),
        ("evalute", "there is no command evalute: did you mean evaluate?"),
        ("bench all", "no command bench: the benchmarks run by `python -m tools.bench`, in a"),
        ("qqqq", "there is no command qqqq: minprefix --help lists them"),
        ("--verison", "minprefix: error: there is no option --verison: did you mean --version?"),
        ("demo --sede 3", "there is no option --sede: did you mean --seed?"),
        ("demo --step 3", "there is no option --step: did you mean --steps"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_what_is_nearly_an_option_or_a_command_is_answered_with_it(argv, sentence, capsys):
    status, out, err = said(argv.split(), capsys)
    assert (status, out) == (2, "")
    assert sentence in err
    assert "required" not in err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("train", "the following arguments are required: --out"),
        ("train --out", "argument --out: expected one argument"),
        ("train --out --lr 1", "argument --out: expected one argument"),
        ("generate --prompt --x", "argument --prompt: expected one argument"),
        ("train --out x --lr fast", "argument --lr: invalid float value: 'fast'"),
        ("generate --backend nunpy", "argument --backend: invalid choice: 'nunpy'"),
        ("generate x", "unrecognized arguments: x"),
    ],
)
def test_what_argparse_says_of_the_rest_stays(argv, sentence, capsys):
    status, _, err = said(argv.split(), capsys)
    assert status == 2
    assert sentence in err


def test_a_value_that_begins_with_a_dash_is_no_option(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    call = ["generate", *MODEL, "--max-new-tokens", "1"]
    for text in ("-3", "- a b", "-x y", "-"):
        assert main([*call, "--prompt", text]) == 0
    assert main([*call, "--prompt=--learning-rate"]) == 0
    capsys.readouterr()
    for lr in ("-1", "-0.5"):
        assert main(["train", *MODEL, "--data", "dåta.jsonl", "--out", "x", "--lr", lr]) == 2
        assert "lr is -" in capsys.readouterr().err


def test_every_name_from_elsewhere_leads_to_an_option_that_is_there():
    from minprefix.cli import _parser
    from minprefix.cli.parser import ELSEWHERE, Parser

    parsers, known = [_parser()], set()
    while parsers:
        parser = parsers.pop()
        assert isinstance(parser, Parser)
        known |= set(parser._option_string_actions)
        parsers += parser.commands.choices.values() if parser.commands else []
    for name, ours in ELSEWHERE.items():
        assert ours in known
        assert name not in known, f"{name} is an option: it needs no other name"


@pytest.mark.parametrize("argv", [[], ["vectors"], ["plot"]], ids=str)
def test_a_program_without_a_word_says_what_it_can_do(argv, capsys):
    """To standard output and with status 0, as pip, cargo, gh and kubectl do."""
    assert said(argv, capsys) == said([*argv, "--help"], capsys) != (0, "", "")
    status, out, err = said(argv, capsys)
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: {' '.join(['minprefix', *argv])} ")
