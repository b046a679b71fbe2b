"""Models by name, from a hub that runs in this process: a small server that answers as it does."""

import collections
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from minprefix import GPT2, Batch, Config
from minprefix.storage import places
from tests.conftest import random_model

pytestmark = pytest.mark.long

CONFIG = Config(n_layer=2, n_head=2, n_embd=16, vocab_size=11, n_positions=24)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = {
    "config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
    "generation_config.json",
}  # fmt: skip


class Hub:
    """A hub with repositories {name: {revision: {file: bytes}}}. `requests` is what it was asked
    for, `ranges` {file: [the first byte of each request]}, `tokens` the ones it was sent.

    `faults` {"org/name" (its listing) or "org/name/file": [...]} is what goes wrong with the next
    requests, one fault each, the last one for ever: None; a status; "drop"; "whole" or "elsewhere"
    (what a Range is answered with); ("stall" | "cut" | "drip", the byte at which); ("redirect",
    to); ("serve", other bytes). `listed` {"org/name": {...}} is what the listing says otherwise;
    `listings` is called after each of them.
    """

    def __init__(self, repos, faults=(), listed=(), listings=lambda: None):
        self.repos, self.faults, self.listed = repos, dict(faults), dict(listed)
        self.listings, self.commit = listings, COMMIT
        self.requests, self.ranges, self.tokens = [], collections.defaultdict(list), set()
        self.closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(ConnectionError):  # the client gave up
                    hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request):
        path = request.path.partition("?")[0].strip("/")
        self.requests.append(f"{request.command} {path}")
        self.tokens.add(request.headers.get("Authorization"))
        api = path.startswith("api/models/")
        path = path.removeprefix("api/models/")
        parts = path.split("/")
        if api and len(parts) == 2:
            parts += ["revision", "main"]
        repo = "/".join(parts[:2])
        if len(parts) < 4 or repo not in self.repos:
            return self.refuse(request, "RepoNotFound")
        revisions, rest = self.repos[repo], urllib.parse.unquote("/".join(parts[4:]))
        verb, revision = parts[2:4]
        if revision not in revisions:
            return self.refuse(request, "RevisionNotFound")
        files = revisions[revision]
        commit = revision if len(revision) == 40 else self.commit
        if api and verb == "revision":
            siblings = [self.entry(name, data, "rfilename") for name, data in files.items()]
            info = {"id": repo, "sha": commit, "siblings": siblings} | self.listed.get(repo, {})
            self.send(request, repo, json.dumps(info).encode())
            return self.listings()
        if api and verb == "tree":
            tree = [{"type": "file"} | self.entry(n, data, "path") for n, data in files.items()]
            return self.send(request, repo, json.dumps(tree).encode())
        if verb == "resolve" and rest in files:
            headers = {"X-Repo-Commit": commit, "ETag": f'"{announced(rest, files[rest])}"'}
            if rest.endswith(".safetensors"):
                headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": len(files[rest])}
            return self.send(request, f"{repo}/{rest}", files[rest], headers)
        return self.refuse(request, "EntryNotFound")

    def entry(self, name, data, key):
        """One file as a listing names it, without what is in it."""
        entry = {key: name, "size": len(data), "blobId": git_hash(data), "oid": git_hash(data)}
        if name.endswith(".safetensors"):  # what the real hub keeps outside of git
            entry["lfs"] = {"size": len(data), "sha256": announced(name, data), "pointerSize": 134}
            entry["lfs"]["oid"] = entry["lfs"]["sha256"]
        return entry

    def send(self, request, name, data, headers=(), status=200):
        faults, fault = self.faults.get(name), None
        if faults and request.command == "GET":
            fault = faults.pop(0) if len(faults) > 1 else faults[0]
        kind, what = fault if isinstance(fault, tuple) else (fault, None)
        first = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=")[:-1])
        if request.command == "GET":
            self.ranges[name].append(first)
        if kind == "drop":
            return request.connection.shutdown(socket.SHUT_RDWR)
        headers = dict(headers)
        if isinstance(kind, int):
            status, data = kind, b"{}"
        elif kind == "redirect":
            status, data, headers["Location"] = 302, b"", what + request.path
        elif kind == "serve":
            data = what
        if first and status == 200 and kind != "whole":
            status, said = 206, 0 if kind == "elsewhere" else first
            headers["Content-Range"] = f"bytes {said}-{len(data) - 1}/{len(data)}"
            data = data[first:]
        request.send_response(status)
        for key, value in ({"Content-Length": len(data)} | headers).items():
            request.send_header(key, str(value))
        request.end_headers()
        if request.command == "GET":
            broken = kind in ("stall", "cut", "drip")
            request.wfile.write(data[: max(what - first, 0)] if broken else data)
        while kind in ("stall", "drip") and not self.closing.wait(0.2):
            if kind == "drip":
                request.wfile.write(b"x")
        if kind == "cut":
            request.connection.shutdown(socket.SHUT_RDWR)
        return None

    def refuse(self, request, code):
        self.send(request, None, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, 404)

    def fetched(self):
        """The files that were fetched, and the revisions that they were fetched at."""
        gets = [r.removeprefix("GET ").split("/") for r in self.requests if r.startswith("GET ")]
        gets = [parts for parts in gets if parts[2:3] == ["resolve"]]
        return {"/".join(p[4:]) for p in gets}, {p[3] for p in gets}


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def announced(name, data):
    """The hash that the hub announces for a file."""
    large = name.endswith(".safetensors")
    return hashlib.sha256(data).hexdigest() if large else git_hash(data)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The model that the hub serves, in a folder."""
    folder = tmp_path_factory.mktemp("served")
    model = random_model(CONFIG, dtype="float32")
    vocab = {"<unk>": 0} | {w: i for i, w in enumerate("abcdefghij", 1)}
    model.tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    model.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def files(local):
    unwanted = {"pytorch_model.bin": b"\x80\x02.", "tf_model.h5": b"x", "README.md": b"# A model"}
    others = {"64.tflite": b"x", "onnx/model.safetensors.onnx": b"x", "vocab.json": b"{}"}
    return {p.name: p.read_bytes() for p in local.iterdir()} | unwanted | others


# a process of its own: huggingface_hub reads its settings when it is imported
LOAD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from minprefix import GPT2, Batch, InputError
from minprefix.storage import download, hub
names, at_once, before = json.loads(sys.argv[1])
download.PAUSE = 0.01
exec(before)
def load(asked):
    name, revision = asked
    try:
        model = GPT2.load(name, revision=revision)
    except InputError as error:
        return {"error": str(error)}
    logits = model.logits(Batch.pack([model.encode("a d j b")]))
    return {"name": model.name, "logits": logits.tolist()}
for said in ThreadPoolExecutor(at_once).map(load, names):
    print(json.dumps(said))
"""


def load(url, home, *names, at_once=1, before="", status=0, **more):
    """What GPT2.load says of each (name, revision), in a process whose hub is at `url` and that
    runs the code `before` first."""
    command = [sys.executable, "-c", LOAD, json.dumps([names, at_once, before])]
    done = subprocess.run(
        command, env=surroundings(url, home, **more), capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def surroundings(url, home, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return kept | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"} | more


def assert_right(said, local, name):
    model = GPT2.load(local)
    want = model.logits(Batch.pack([model.encode("a d j b")]))
    assert said["name"] == name
    assert np.array_equal(np.float32(said["logits"]), want)


def test_a_name_is_fetched_once_and_then_comes_from_the_cache(tmp_path, local, files):
    with Hub({"org/name": {"main": files, COMMIT: files}}) as hub:
        said, _ = load(hub.url, tmp_path, ("org/name", None), ("org/name", None), at_once=2)
        for one in said:  # of which one waited for the other
            assert_right(one, local, "org/name")
        names, _ = hub.fetched()
        assert names == WANTED & set(files)  # and not the pickle, nor anything else
        assert sum("/resolve/" in r for r in hub.requests) == len(names)
        url = hub.url
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):  # the server is gone
        said, _ = load(url, tmp_path, ("org/name", None), **more)
        assert_right(said[0], local, "org/name")


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2-xl"])
def test_gpt2s_own_names_are_fetched_at_the_pinned_commit_and_then_cached(
    tmp_path, local, files, name
):
    repo, commit = places.PINNED[name]
    other = dict.fromkeys(files, b"{}")  # what a newer commit would hold
    with Hub({repo: {commit: files, "main": other, COMMIT: other}}) as hub:
        said, _ = load(hub.url, tmp_path, (name, None))
        assert_right(said[0], local, name)
        assert hub.fetched()[1] == {commit}
        url = hub.url
    said, complaints = load(url, tmp_path, (name, None))  # the server is gone
    assert_right(said[0], local, name)
    assert "Retrying" not in complaints


@pytest.fixture
def with_more(files):
    """The model with what lies beside a tokenizer, and several tokens that end a text."""
    more = {
        "added_tokens.json": {"[SEP]": 11},
        "special_tokens_map.json": {"sep_token": "[SEP]"},
        "tokenizer_config.json": {"model_max_length": 24},
        "generation_config.json": {"eos_token_id": [3, 4]},
    }
    return files | {name: json.dumps(value).encode() for name, value in more.items()}


ENCODED = """
model = GPT2.load("org/name", revision=revision)
print(model.encode("a[SEP]"), model.config.end_tokens)
"""


def encoded(url, home, revision=None, **more):
    """What the model makes of a text, and where it ends one."""
    before = f"revision = {revision!r}" + ENCODED
    command = [sys.executable, "-c", LOAD, json.dumps([[], 1, before])]
    done = subprocess.run(
        command, env=surroundings(url, home, **more), capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


RIGHT = "[1, 11] (3, 4)"


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_files_beside_a_tokenizer_are_fetched_and_count(tmp_path, with_more, revision):
    with Hub({"org/name": {"main": with_more, COMMIT: with_more}}) as hub:
        assert encoded(hub.url, tmp_path, revision) == RIGHT
        url = hub.url
    assert encoded(url, tmp_path, revision) == RIGHT  # the server is gone


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_what_an_earlier_version_fetched_is_completed_and_until_then_loads(
    tmp_path, with_more, revision
):
    with Hub({"org/name": {"main": with_more, COMMIT: with_more}}) as hub:
        # 0.1.0 wanted fewer files, and kept its record under another name
        old = "hub.WANTED = ('config.json', 'model*.safetensors', 'tokenizer.json', 'vocab.json')\n"
        old += "hub.Cache.record = lambda c, commit, *_: c.folder / 'minprefix' / f'{commit}.json'"
        load(hub.url, tmp_path, ("org/name", revision), before=old)
        assert "added_tokens.json" not in hub.fetched()[0]
        before = encoded(hub.url, tmp_path, revision, HF_HUB_OFFLINE="1")
        assert before.endswith(" ()")
        hub.requests.clear()
        assert encoded(hub.url, tmp_path, revision) == RIGHT
        assert sum(LARGE in r for r in hub.requests) == 0  # what was checked is not fetched again
        assert encoded(hub.url, tmp_path, revision, HF_HUB_OFFLINE="1") == RIGHT


def test_every_pinned_name_has_a_whole_commit():
    assert set(places.PINNED) >= {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    for repo, commit in places.PINNED.values():
        assert places.PINNED[repo] == (repo, commit)
        assert len(commit) == 40
        assert int(commit, 16)


def test_the_revision_that_was_asked_for_is_fetched(tmp_path, local, files):
    repo, pinned = places.PINNED["gpt2"]
    broken, asked = dict.fromkeys(files, b"{}"), "f" * 40
    repos = {repo: {pinned: broken, asked: files}, "org/name": {"main": broken, asked: files}}
    with Hub(repos) as hub:
        said, _ = load(hub.url, tmp_path, ("gpt2", asked), ("org/name", asked))
        assert_right(said[0], local, "gpt2")
        assert_right(said[1], local, "org/name")
        assert hub.fetched()[1] == {asked}


def test_what_the_hub_does_not_have_is_a_sentence(tmp_path, files):
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x02."}
    repos = {"org/name": {"main": files}, "org/old": {"main": pickled, COMMIT: pickled}}
    repos["org/adapter"] = {"main": {"adapter_config.json": b"{}"}}
    asked = [
        ("org/absent", None),
        ("gpt2-medium", None),
        ("not a name!", None),
        ("org/name", "no-such-branch"),
        ("org/old", None),
        ("org/adapter", None),
    ]
    with Hub(repos) as hub:
        said, _ = load(hub.url, tmp_path, *asked)
        absent, medium, spelling, revision, old, adapter = (s["error"] for s in said)
        assert not any("pytorch_model" in r for r in hub.requests)
    assert absent.startswith("model 'org/absent' is neither a folder here nor a name on the hub: ")
    assert "'openai-community/gpt2-medium' is neither a folder here nor a name" in medium
    assert "'not a name!' is neither a folder here nor a name on the hub: check the sp" in spelling
    assert "'org/name'" in revision
    assert "no-such-branch" in revision
    assert "without a network" not in revision  # the hub answered
    assert old.startswith(
        "model 'org/old' on the hub has no model.safetensors: pytorch_model.bin is a pickle, which "
        "can run any code and is never opened: convert it, in its folder, with `python -c "
    )
    assert "; `hf download org/old --local-dir DIR` fetches it, and the name of the model" in old
    assert adapter.startswith(
        "model 'org/adapter' on the hub has no model.safetensors: adapter_config.json is an adapt"
    )
    assert not hub.fetched()[0]


BY_HAND = (
    "without a network, put its .json, .txt and .safetensors files into a folder and give that "
    "folder instead of the name"
)


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_without_a_network_a_sentence_says_at_once_how_to_place_the_files(tmp_path, more):
    commit = places.PINNED["gpt2"][1]
    with Hub({}) as hub:
        closed = hub.url  # nobody listens there any more
    names = [("org/name", None), ("org/name", COMMIT), ("gpt2", None)]
    said, complaints = load(closed, tmp_path, *names, **more)
    for answer in said:
        assert BY_HAND in answer["error"]
    assert said[0]["error"].startswith("cannot fetch model 'org/name' from the hub")
    assert said[1]["error"].startswith(f"cannot fetch model 'org/name' at {COMMIT} from the hub")
    assert said[2]["error"].startswith(f"cannot fetch model 'openai-community/gpt2' at {commit} ")
    assert "Retrying" not in complaints  # for half a minute, with what cannot work


def test_files_that_were_placed_by_hand_are_that_model(tmp_path, local):
    said, _ = load("http://127.0.0.1:9", tmp_path, (str(local), None))
    assert_right(said[0], local, str(local))


# ---- a server that fails ------------------------------------------------------------------------

LARGE = "model.safetensors"


def hub_of(files, faults, **more):
    """A hub with the same `files` in a repository org/KEY for each of `faults` {KEY: (file, or ""
    for the listing, [...])}."""
    repos = {f"org/{key}": {"main": files, COMMIT: files} for key in faults}
    where = {f"org/{k}/{file}".rstrip("/"): list(f) for k, (file, f) in faults.items()}
    return Hub(repos, where, **more)


def load_all(hub, home, **more):
    """{KEY: what GPT2.load says of org/KEY}, all at once, so that their waits are one."""
    names = sorted(hub.repos)
    said, _ = load(hub.url, home, *((n, None) for n in names), at_once=len(names), **more)
    return {name.removeprefix("org/"): one for name, one in zip(names, said, strict=True)}


def blobs(home, name):
    return home / "hub" / f"models--org--{name}" / "blobs"


def test_a_server_that_recovers_is_asked_again_for_what_is_still_missing(tmp_path, local, files):
    half = len(files[LARGE]) // 2
    faults = {
        "stall": (LARGE, [("stall", half), None]),
        "drip": (LARGE, [("drip", half), None]),
        "cut": (LARGE, [("cut", half), ("cut", half + 9), None]),
        "short": (LARGE, [("serve", files[LARGE][:half]), None]),
        "drop": (LARGE, ["drop", None]),
        "500": (LARGE, [500, 503, None]),
        "429": (LARGE, [429, None]),
        "416": (LARGE, [("cut", half), 416, None]),
        "whole": (LARGE, [("cut", half), "whole", None]),
        "elsewhere": (LARGE, [("cut", half), "elsewhere", None]),
        "listing-500": ("", [500, None]),
        "listing-429": ("", [429, None]),
        "listing-cut": ("", [("cut", 9), None]),
        "listing-stall": ("", [("stall", 9), None]),
        "listing-drip": ("", [("drip", 9), None]),
    }
    with hub_of(files, faults) as hub:
        for key, said in load_all(hub, tmp_path).items():
            assert_right(said, local, f"org/{key}")
        begun = {key: hub.ranges[f"org/{key}/{LARGE}"] for key in faults}
    assert begun["stall"] == begun["short"] == [0, half]
    assert begun["cut"] == [0, half, half + 9]
    assert begun["drip"][0] == 0
    assert half <= begun["drip"][1] < half + 100
    assert begun["whole"] == [0, half]
    assert begun["elsewhere"] == [0, half, half]
    assert begun["500"] == [0, 0, 0]
    assert begun["416"] == [0, half, 0]


def test_a_server_that_stays_broken_ends_in_a_sentence_and_the_next_command_goes_on(
    tmp_path, local, files
):
    half, whole = len(files[LARGE]) // 2, len(files[LARGE])
    broken = {
        "stall": (LARGE, [("stall", half)]), "cut": (LARGE, [("cut", half)]),
        "drop": (LARGE, ["drop"]), "500": (LARGE, [500]), "429": (LARGE, [429]),
        "away": (LARGE, [("redirect", "http://127.0.0.1:9")]),  # where nobody listens
    }  # fmt: skip
    listing = {
        "listing-stall": ("", [("stall", 9)]), "listing-cut": ("", [("cut", 9)]),
        "listing-500": ("", [500]), "listing-429": ("", [429]),
    }  # fmt: skip
    refused = {"404": (LARGE, [404]), "listing-403": ("", [403])}
    with hub_of(files, broken | listing | refused) as hub:
        # on a busy machine a try can end within 1 s before it has reached the server
        longer = {"HF_HUB_DOWNLOAD_TIMEOUT": "3"}
        said = load_all(hub, tmp_path, before="download.ATTEMPTS = 2", **longer)
        tries = {key: len(hub.ranges[f"org/{key}/{LARGE}"]) for key in broken | refused}
        tries |= {key: len(hub.ranges[f"org/{key}"]) for key in listing}
        hub.faults.clear()
        hub.ranges.clear()
        again = load_all(hub, tmp_path)
        begun = {key: hub.ranges[f"org/{key}/{LARGE}"] for key in broken}
    assert tries.pop("404") == 1  # an answer, not a failure
    assert tries.pop("listing-403") == 0
    assert set(tries.values()) == {2}, tries
    for key in broken:
        kept = half if key in ("stall", "cut") else 0
        told = f"{LARGE} of model 'org/{key}' broke off after {kept:,} of {whole:,} bytes, at the "
        assert said[key]["error"].startswith(told)
        assert said[key]["error"].endswith("the same command goes on from there")
        assert begun[key] == [kept]
    for key in listing | refused.keys():
        assert said[key]["error"].startswith(f"cannot fetch model 'org/{key}' from the hub (")
        assert said[key]["error"].endswith(BY_HAND)
    for key in ("500", "429", "listing-500", "listing-429", "404", "listing-403"):
        assert f"(the hub answered {key[-3:]})" in said[key]["error"]
    for key, one in again.items():
        assert_right(one, local, f"org/{key}")


def test_a_file_that_is_not_what_was_announced_is_removed_and_named_with_both_hashes(
    tmp_path, local, files
):
    other = {LARGE: files[LARGE][::-1], "config.json": files["config.json"].replace(b"1", b"2")}
    faults = {
        "large": (LARGE, [("serve", other[LARGE])]),
        "small": ("config.json", [("serve", other["config.json"])]),
        "late": (LARGE, [("cut", 99), ("serve", other[LARGE])]),
        "longer": (LARGE, [("serve", files[LARGE] + b"more")]),
    }
    with hub_of(files, faults) as hub:
        said = load_all(hub, tmp_path)
        for key, file in (("large", LARGE), ("small", "config.json"), ("late", LARGE)):
            want, got = announced(file, files[file]), announced(file, other[file])
            kind = "sha256" if file == LARGE else "git's sha1"
            assert said[key]["error"].startswith(
                f"{file} of model 'org/{key}' as it came from the hub is not the file that the hub "
                f"announced ({kind} {got}, expected {want}): it was removed; "
            )
            assert not any(p.name.startswith(want) for p in blobs(tmp_path, key).iterdir())
        assert "hub sends more than the " in said["longer"]["error"]
        assert not any("incomplete" in p.name for p in blobs(tmp_path, "longer").iterdir())
        assert hub.ranges[f"org/late/{LARGE}"] == [
            0,
            99,
            0,
        ]  # the first bytes could be the wrong ones
        hub.faults.clear()
        for key, one in load_all(hub, tmp_path).items():
            assert_right(one, local, f"org/{key}")


def test_a_listing_that_names_other_places_or_no_hash_or_another_commit_brings_nothing(
    tmp_path, local, files
):
    outside = {"model/../../../../../model.safetensors": b"x", "../config.json": b"x"}
    outside |= {"..\\config.json": b"x", "model\\..\\..\\x.safetensors": b"x"}
    name = "config.json"
    listed = {
        "org/bare": {"siblings": [{"rfilename": name}]},
        "org/path": {"siblings": [{"rfilename": name, "size": 1, "blobId": "../../../evil"}]},
        "org/commit": {"sha": "../" * 13 + "x"},
        "org/moved": {"sha": "e" * 40},
    }
    repos = {"org/outside": {"main": outside | files, COMMIT: outside | files}}
    repos |= {name: {"main": files, COMMIT: files} for name in listed}
    with Hub(repos, listed=listed) as hub:
        asked = [("org/outside", None), ("org/bare", None), ("org/path", None)]
        asked += [("org/commit", None), ("org/moved", COMMIT), ("org/outside", "../../../main")]
        said, _ = load(hub.url, tmp_path / "home", *asked)
        assert hub.fetched()[0] == WANTED & set(files)
    assert_right(said[0], local, "org/outside")
    for one in said[1:3]:
        assert one["error"].startswith("the hub announces no hash for config.json of 'org/")
    assert said[3]["error"].startswith("the hub answers commit '../../")
    assert said[4]["error"].startswith(
        f"the hub answers commit '{'e' * 40}' for {COMMIT} of 'org/m"
    )
    assert said[5]["error"].startswith("revision '../../../main' is no branch, tag or commit")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_a_branch_that_moves_during_a_download_is_not_mixed(tmp_path, local, files):
    newer, moved = dict.fromkeys(files, b"{}"), "d" * 40

    def move():
        hub.repos["org/name"]["main"], hub.commit = newer, moved

    with Hub({"org/name": {"main": files, COMMIT: files, moved: newer}}, listings=move) as hub:
        said, _ = load(hub.url, tmp_path, ("org/name", None))
        assert_right(said[0], local, "org/name")
        assert hub.fetched()[1] == {COMMIT}
        assert sum(r.startswith("GET api/") for r in hub.requests) == 1
        said, _ = load(hub.url, tmp_path, ("org/name", None), ("org/name", COMMIT))
        assert "has no model_type" in said[0]["error"]  # the newer one
        assert_right(said[1], local, "org/name")
        assert hub.fetched()[1] == {COMMIT, moved}
        assert not any(r.endswith(f"revision/{COMMIT}") for r in hub.requests)  # nothing to ask


def test_bytes_from_another_server_are_checked_and_that_server_gets_no_token(
    tmp_path, local, files
):
    repos = {f"org/{n}": {"main": files, COMMIT: files} for n in ("right", "lies")}
    wrong = {f"org/lies/{LARGE}": [("serve", files[LARGE][::-1])]}
    with Hub(repos, wrong) as other:
        redirects = {f"{name}/{LARGE}": [("redirect", other.url)] for name in repos}
        with Hub(repos, redirects) as hub:
            said = load_all(hub, tmp_path, HF_TOKEN="hf_secret")
            assert hub.tokens == {"Bearer hf_secret"}
        assert other.tokens == {None}
    assert_right(said["right"], local, "org/right")
    assert "is not the file that the hub announced" in said["lies"]["error"]


KILL = "import os, signal\ndef kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"


def test_a_kill_during_a_download_or_before_the_check_costs_nothing_and_risks_nothing(
    tmp_path, local, files
):
    few, want = 1000, announced(LARGE, files[LARGE])  # few: less than a buffer
    partial = blobs(tmp_path, "name") / f"{want}.minprefix.incomplete"
    faults = {"name": (LARGE, [("stall", few), ("serve", files[LARGE][::-1]), None])}
    with hub_of(files, faults) as hub:
        command = [sys.executable, "-c", LOAD, json.dumps([[("org/name", None)], 1, ""])]
        where = surroundings(hub.url, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="600")
        running = subprocess.Popen(command, env=where)
        for _ in range(30_000):
            if partial.exists() and partial.stat().st_size == few:
                break
            time.sleep(0.01)
        assert running.poll() is None
        running.kill()
        running.wait()
        # a server that lies, and a kill before anybody looked
        before = KILL + "digest = hub.hash_of\n"
        before += "hub.hash_of = download.hash_of = lambda p, h: "
        before += f"kill() if h == '{want}' else digest(p, h)"
        load(hub.url, tmp_path, ("org/name", None), before=before, status=-9)
        assert hub.ranges[f"org/name/{LARGE}"] == [0, few]
        assert partial.stat().st_size == len(files[LARGE])
        (said,), _ = load(hub.url, tmp_path, ("org/name", None), HF_HUB_OFFLINE="1")
        assert said["error"].endswith(BY_HAND)
        (said,), _ = load(hub.url, tmp_path, ("org/name", None))
        assert_right(said, local, "org/name")
        assert hub.ranges[f"org/name/{LARGE}"] == [0, few, 0]


# the client's own download
CLIENT = """
import sys
from huggingface_hub import snapshot_download
for name in sys.argv[2:]:
    print(snapshot_download(name, local_files_only=sys.argv[1] == "offline"))
"""


def client(url, home, where, *names):
    command = [sys.executable, "-c", CLIENT, where, *names]
    said = subprocess.run(
        command, env=surroundings(url, home), capture_output=True, text=True, check=True
    )
    return said.stdout.splitlines()


def test_what_other_software_fetched_or_changed_is_checked_before_it_is_used(
    tmp_path, local, files
):
    """... and the client itself finds what was fetched here."""
    lie = (LARGE, [("serve", files[LARGE][::-1])])
    with hub_of(files, {"right": ("", []), "wrong": lie, "ours": ("", [])}) as hub:
        client(hub.url, tmp_path, "online", "org/right", "org/wrong")
        load(hub.url, tmp_path, ("org/ours", None))
        (folder,) = client(hub.url, tmp_path, "offline", "org/ours")
        hub.faults.clear()
        hub.requests.clear()
        said = load_all(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert not hub.requests
        assert_right(said["right"], local, "org/right")
        assert_right(said["ours"], local, "org/ours")
        assert f"sha256 {announced(LARGE, files[LARGE][::-1])}" in said["wrong"]["error"]
        assert not (blobs(tmp_path, "wrong") / announced(LARGE, files[LARGE])).exists()

        weights = Path(folder) / LARGE
        weights.write_bytes(files[LARGE][::-1])  # as large as before
        said = load_all(hub, tmp_path)
        for key in hub.repos:
            assert_right(said[key.removeprefix("org/")], local, key)
        fetched = [r for r in hub.requests if "/resolve/" in r]
        assert sorted(fetched) == [
            f"GET org/{k}/resolve/{COMMIT}/{LARGE}" for k in ("ours", "wrong")
        ]
        weights.write_bytes(files[LARGE][::-1])
        said = load_all(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert f"{LARGE} of model 'org/ours' in the cache is not the file" in said["ours"]["error"]


# as on Windows, where links are a privilege
NO_LINKS = "import os\ndef refused(*_, **__): raise OSError('no links')\nos.symlink = refused\n"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_the_client_left_is_found_without_a_network_under_the_older_name_too(
    tmp_path, local, files, links
):
    repo, commit = places.PINNED["gpt2"]
    asked = f"print(snapshot_download({repo!r}, revision={commit!r}))"
    code = ("" if links else NO_LINKS) + f"from huggingface_hub import snapshot_download\n{asked}"
    with Hub({repo: {commit: files}}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", code], env=surroundings(hub.url, tmp_path), check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        url = hub.url
    place = Path(done.stdout.strip())
    assert (place / LARGE).is_symlink() == links
    for name in ("models--openai-community--gpt2", "models--gpt2"):
        place = tmp_path / "hub" / name / "snapshots" / commit
        if not place.exists():
            (tmp_path / "hub" / "models--openai-community--gpt2").rename(tmp_path / "hub" / name)
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            (said,), _ = load(url, tmp_path, ("gpt2", None), **more)
            if links:
                assert_right(said, local, "gpt2")
            else:
                assert f"is in the cache, in {place}, but its files are no links" in said["error"]
    (said,), _ = load(url, tmp_path, (str(place), None))
    assert_right(said, local, str(place))


def test_a_disk_without_room_is_a_sentence(tmp_path, files):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    with hub_of(files, {"name": ("", [])}) as hub:
        (said,), _ = load(hub.url, tmp_path, ("org/name", None), before=limit)
    assert said["error"].startswith(f"cannot keep model 'org/name' in the cache {tmp_path}/hub (")
