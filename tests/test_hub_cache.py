"""Models that are in a cache already, without a network: whose files are used, and which folder is
named where they are not. (`test_hub.py` has a server.)"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from minprefix import GPT2, InputError
from minprefix.storage import hub, places
from tests.conftest import random_model
from tests.test_checkpoint import CONFIG

PINNED = places.PINNED["gpt2"][1]
OTHER = "11c5a3d5811f50298f278a704980280950aedb10"
NEW, OLD = "models--openai-community--gpt2", "models--gpt2"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty cache, and no network."""

    def offline(*_):
        raise OfflineModeIsEnabled("offline mode is enabled")

    for name in ("TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_listing", offline)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_model(CONFIG, dtype="float32").save(folder)
    return folder


def fill(root, repo, model, commit=PINNED, links=True, only="*", ref="main"):
    """A repository in the cache, as huggingface_hub leaves it. -> the folder of the model."""
    place = root / repo / "snapshots" / commit
    place.mkdir(parents=True)
    (root / repo / "blobs").mkdir(exist_ok=True)
    if ref:
        (root / repo / "refs").mkdir(exist_ok=True)
        (root / repo / "refs" / ref).write_text(commit)
    for path in model.glob(only):
        data = path.read_bytes()
        if links:
            small = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            large = path.suffix == ".safetensors"
            blob = root / repo / "blobs" / (hashlib.sha256(data).hexdigest() if large else small)
            blob.write_bytes(data)
            (place / path.name).symlink_to(os.path.relpath(blob, place))
        else:  # Windows without the right to make links
            (place / path.name).write_bytes(data)
    return place


def refusal(name, revision=None):
    with pytest.raises(InputError) as refused:
        GPT2.load(name, revision=revision)
    return str(refused.value)


def assert_used(place, name="gpt2"):
    assert places.find(name) == place
    assert GPT2.load(name).config == CONFIG


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
@pytest.mark.parametrize("repo", [NEW, OLD])
def test_gpt2_is_found_under_the_name_it_has_and_the_one_it_had(root, model, repo, name):
    assert_used(fill(root, repo, model), name)


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("models--distilgpt2", "distilbert/distilgpt2"),
        ("models--distilbert--distilgpt2", "distilgpt2"),
        ("models--someone--stories", "someone/stories"),
    ],
)
def test_a_branch_is_what_it_was_in_the_cache_under_either_name(root, model, repo, name):
    assert_used(fill(root, repo, model, OTHER), name)


def test_a_name_of_another_owner_is_another_model(root, model):
    fill(root, OLD, model)
    fill(root, "models--stories", model)
    for name in ("someone/gpt2", "someone/stories"):
        assert refusal(name).startswith(f"cannot fetch model '{name}' from the hub")


def test_the_cache_that_older_versions_of_transformers_were_told_of_is_found(
    root, model, monkeypatch
):
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(root.parent / "elsewhere"))
    assert_used(fill(root.parent / "elsewhere", OLD, model))


@pytest.mark.parametrize("repo", [NEW, OLD])
def test_a_cache_without_links_is_found_and_its_folder_is_the_one_to_give(root, model, repo):
    place = fill(root, repo, model, links=False)
    said = refusal("gpt2")
    assert said.startswith(f"model 'openai-community/gpt2' is in the cache, in {place}, but its fi")
    assert said.endswith("give that folder instead of the name")
    (given,) = re.findall(f"in ({re.escape(str(root))}[^ ,]*),", said)
    assert GPT2.load(given).config == CONFIG


def test_a_cache_with_links_goes_before_one_without(root, model):
    fill(root, NEW, model, links=False)
    assert_used(fill(root, OLD, model))


@pytest.mark.parametrize("repo", [NEW, OLD])
def test_another_commit_is_not_used_and_its_folder_is_the_one_to_give(root, model, repo):
    place = fill(root, repo, model, OTHER)
    said = refusal("gpt2")
    assert said.startswith(f"model 'openai-community/gpt2' at {PINNED} is not in the cache")
    assert f"; {place} has that name at some commit: " in said
    assert refusal("gpt2", "f" * 40).count(str(place)) == 1
    assert GPT2.load(place).config == CONFIG


def test_a_copy_without_the_names_of_branches_names_its_folder(root, model):
    place = fill(root, "models--someone--stories", model, ref=None)
    assert f"; {place} has that name at some commit: " in refusal("someone/stories")


def test_a_snapshot_without_weights_is_not_called_one(root, model):
    fill(root, OLD, model, OTHER, only="config.json")
    assert refusal("gpt2").startswith("cannot fetch model 'openai-community/gpt2' at ")
    place = fill(root, NEW, model, only="config.json")
    said = refusal("gpt2")
    assert "in the cache has no model.safetensors: it was not fetched, so load" in said
    (place / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    said = refusal("gpt2")
    assert "in the cache has no model.safetensors: pytorch_model.bin is a pickle, which" in said
    assert said.endswith(f"; the folder is {place}")


@pytest.mark.parametrize("repo", [NEW, OLD])
def test_a_file_that_is_not_what_its_blob_says_is_removed_and_named(root, model, repo):
    place = fill(root, repo, model)
    weights = place / "model.safetensors"
    Path(os.path.realpath(weights)).write_bytes(weights.read_bytes()[::-1])
    said = refusal("gpt2")
    assert said.startswith("model.safetensors of model 'openai-community/gpt2' in the cache is not")
    assert not weights.exists()
    assert "is not in the cache" in refusal("gpt2") or "has no model.safe" in refusal("gpt2")
    shutil.rmtree(root / repo)
    other = fill(root, {NEW: OLD, OLD: NEW}[repo], model)
    assert_used(other)


def test_the_folder_of_a_repository_in_the_cache_names_the_models(root, model):
    place = fill(root, OLD, model)
    assert refusal(root / OLD).endswith(f"it is a cache of the hub's: give {str(place)!r}")


def test_a_folder_that_a_person_can_give_goes_before_one_that_is_not_whole(root, model):
    fill(root, NEW, model, only="config.json")
    place = fill(root, OLD, model, links=False)
    assert f"in {place}, but its files are no links" in refusal("gpt2")


@pytest.mark.parametrize("version", ["", ".2"])
def test_a_cache_without_links_that_minprefix_filled_itself_is_checked_by_its_record(
    root, model, version
):
    place = fill(root, NEW, model, links=False)
    record = {p.name: [hashlib.sha256(p.read_bytes()).hexdigest(), 1, 0] for p in place.iterdir()}
    (root / NEW / "minprefix").mkdir()
    (root / NEW / "minprefix" / f"{PINNED}{version}.json").write_text(json.dumps(record))
    assert_used(place)
    (place / "config.json").write_text("{}")
    assert refusal("gpt2").startswith(
        "config.json of model 'openai-community/gpt2' in the cache is"
    )
