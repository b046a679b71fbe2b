"""Models by name, from a hub that runs in this process: a small server that answers as it does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from minprefix import GPT2, Batch, Config, checkpoint
from tests.conftest import random_model

CONFIG = Config(n_layer=2, n_head=2, n_embd=16, vocab_size=11, n_positions=24)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt"}


class Hub:
    """A hub with repositories {name: {revision: {file: bytes}}}; `requests` is what it was asked
    for."""

    def __init__(self, repos):
        self.repos, self.requests = repos, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request):
        path = request.path.partition("?")[0].strip("/")
        self.requests.append(f"{request.command} {path}")
        api = path.startswith("api/models/")
        path = path.removeprefix("api/models/")
        parts = path.split("/")
        if api and len(parts) == 2:
            parts += ["revision", "main"]
        if len(parts) < 4 or "/".join(parts[:2]) not in self.repos:
            return self.refuse(request, "RepoNotFound")
        revisions, rest = self.repos["/".join(parts[:2])], "/".join(parts[4:])
        verb, revision = parts[2:4]
        if revision not in revisions:
            return self.refuse(request, "RevisionNotFound")
        files = revisions[revision]
        if api and verb == "revision":
            siblings = [{"rfilename": name} for name in files]
            info = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings}
            return self.send(request, json.dumps(info).encode())
        if api and verb == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                for name, data in files.items()
            ]
            return self.send(request, json.dumps(tree).encode())
        if verb == "resolve" and rest in files:
            commit = {"X-Repo-Commit": revision if len(revision) == 40 else COMMIT}
            return self.send(request, files[rest], commit)
        return self.refuse(request, "EntryNotFound")

    def send(self, request, data, headers=(), status=200):
        request.send_response(status)
        always = {"ETag": f'"{etag(data)}"', "Content-Length": str(len(data))}
        for name, value in (always | dict(headers)).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)

    def refuse(self, request, code):
        self.send(request, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, 404)

    def fetched(self):
        """The files that were fetched, and the revisions that they were fetched at."""
        gets = [r.removeprefix("GET ").split("/") for r in self.requests if r.startswith("GET ")]
        gets = [parts for parts in gets if parts[2:3] == ["resolve"]]
        return {"/".join(p[4:]) for p in gets}, {p[3] for p in gets}


def etag(data):
    return hashlib.sha1(data).hexdigest()


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
import numpy as np
from minprefix import GPT2, Batch, InputError
for name, revision in json.loads(sys.argv[1]):
    try:
        model = GPT2.load(name, revision=revision)
    except InputError as error:
        print(json.dumps({"error": str(error)}))
    else:
        logits = model.logits(Batch.pack([model.encode("a d j b")]))
        print(json.dumps({"name": model.name, "logits": logits.tolist()}))
"""


def load(url, home, *names, **more):
    """What GPT2.load says of each (name, revision), in a process whose hub is at `url`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}
    command = [sys.executable, "-c", LOAD, json.dumps(names)]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def assert_right(said, local, name):
    model = GPT2.load(local)
    want = model.logits(Batch.pack([model.encode("a d j b")]))
    assert said["name"] == name
    assert np.array_equal(np.float32(said["logits"]), want)


def test_a_name_is_fetched_once_and_then_comes_from_the_cache(tmp_path, local, files):
    with Hub({"org/name": {"main": files, COMMIT: files}}) as hub:
        said, _ = load(hub.url, tmp_path, ("org/name", None))
        assert_right(said[0], local, "org/name")
        names, _ = hub.fetched()
        assert names == WANTED - {"merges.txt"}  # and not the pickle, nor anything else
        url = hub.url
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):  # the server is gone
        said, _ = load(url, tmp_path, ("org/name", None), **more)
        assert_right(said[0], local, "org/name")


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2-xl"])
def test_gpt2s_own_names_are_fetched_at_the_pinned_commit_and_then_cached(
    tmp_path, local, files, name
):
    repo, commit = checkpoint.PINNED[name]
    other = dict.fromkeys(files, b"{}")  # what a newer commit would hold
    with Hub({repo: {commit: files, "main": other, COMMIT: other}}) as hub:
        said, _ = load(hub.url, tmp_path, (name, None))
        assert_right(said[0], local, name)
        assert hub.fetched()[1] == {commit}
        url = hub.url
    said, complaints = load(url, tmp_path, (name, None))  # the server is gone
    assert_right(said[0], local, name)
    assert "Retrying" not in complaints


def test_every_pinned_name_has_a_whole_commit():
    assert set(checkpoint.PINNED) >= {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}
    for repo, commit in checkpoint.PINNED.values():
        assert checkpoint.PINNED[repo] == (repo, commit)
        assert len(commit) == 40
        assert int(commit, 16)


def test_the_revision_that_was_asked_for_is_fetched(tmp_path, local, files):
    repo, pinned = checkpoint.PINNED["gpt2"]
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
    asked = [
        ("org/absent", None),
        ("gpt2-medium", None),
        ("not a name!", None),
        ("org/name", "no-such-branch"),
        ("org/old", None),
    ]
    with Hub(repos) as hub:
        said, _ = load(hub.url, tmp_path, *asked)
        absent, medium, spelling, revision, old = (s["error"] for s in said)
        assert not any("pytorch_model" in r for r in hub.requests)
    assert absent.startswith("model 'org/absent' is neither a folder here nor a name on the hub: ")
    assert "'openai-community/gpt2-medium' is neither a folder here nor a name" in medium
    assert "'not a name!' is neither a folder here nor a name on the hub: check the sp" in spelling
    assert "'org/name'" in revision
    assert "no-such-branch" in revision
    assert "without a network" not in revision  # the hub answered
    assert "has no model.safetensors" in old


BY_HAND = (
    "without a network, put its config.json, model.safetensors, vocab.json and merges.txt into a "
    "folder and give that folder instead of the name"
)


@pytest.mark.parametrize("more", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_without_a_network_a_sentence_says_at_once_how_to_place_the_files(tmp_path, more):
    commit = checkpoint.PINNED["gpt2"][1]
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
