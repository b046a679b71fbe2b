"""A saved prefix or rival against its record: the fingerprints, then the recorded evaluation
again."""

import hashlib
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minprefix import methods
from minprefix.data import demo
from minprefix.data.pairs import Encoded, Pair, Template, encode_pairs, fingerprint, read_pairs
from minprefix.errors import InputError, counted
from minprefix.evaluate import mean_loss, predict
from minprefix.generate import Decoding
from minprefix.method import Method
from minprefix.model import GPT2
from minprefix.prefix import Prefix
from minprefix.storage import artifact
from minprefix.storage.fingerprint import earlier_tokenizer_fingerprint
from minprefix.storage.places import SHIPPED
from minprefix.storage.provenance import ABOUT, Base, Evaluation, Provenance, read_about
from minprefix.storage.reading import read_bytes
from minprefix.storage.saving import finish_save

#: the largest relative error of a loss, by the precision of its products: another number of threads
#: or another processor changes the last bits
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2}
SAMPLES, EXAMPLES, BATCH = 3, 64, 32


class Finding(NamedTuple):
    what: str
    right: bool | None  # None: not checked
    text: str


def evaluation(
    model: GPT2,
    prefix: Prefix | Method,
    pairs: Sequence[Pair],
    encoded: Sequence[Encoded],
    template: Template,
    of: str,
    backend: str | None = None,
) -> Evaluation:
    """The numbers that `verify` computes again: a prefix's loss on the first pairs of the file `of`
    ("valid", or "data" without one), and the texts for the first sources."""
    encoded = encoded[:EXAMPLES]
    room = model.config.n_positions - prefix.position_offset
    fitting = (
        source
        for source in dict.fromkeys(pair.source for pair in pairs)
        if len(model.encode(template.prompt(source))) <= room
    )  # a pair that was left out as too long may have a source without room
    sources = list(islice(fitting, SAMPLES))
    decoding = Decoding(max_new_tokens=40)
    written = predict(model, prefix, sources, template, decoding, backend)
    both = zip(sources, written, strict=True)
    samples = [{"source": source, "prediction": text} for source, text in both]
    loss = mean_loss(model, prefix, encoded, backend, BATCH)
    return Evaluation(of, len(encoded), loss, decoding.max_new_tokens, samples)


def verify(
    folder: str | Path,
    model: GPT2 | None = None,
    data: str | Path | None = None,
    valid: str | Path | None = None,
) -> list[Finding]:
    """Check a saved prefix or rival against its record: its files, the fingerprints of the model,
    the tokenizer and the data, then its loss and its samples, computed again.

    `model`: by default the one of the recorded name; `data` and `valid`: by default the files at
    the recorded places. What is missing is reported as not checked. If the prefix's own files
    changed, nothing else is checked. Raises InputError for a folder that holds no prefix with a
    record, and for a record that cannot be read.
    """
    folder = Path(folder)
    if folder.is_dir():
        finish_save(folder, artifact.FILES)
    about = read_about(folder)
    found = [] if about is None else [_files(folder, about.files)]
    if found and not found[0].right:
        return found
    prefix = methods.load(folder)
    if about is None:
        raise InputError(
            f"{str(folder)!r} has no {ABOUT}: PEFT wrote it, and there is no record to check it by"
        )
    if about.prefix is not None and about.prefix.kind == "mlp":
        artifact.read_mlp(folder)
    reason = "no model was recorded: give --model"
    if model is None and about.base.name is not None:
        try:
            model = recorded_model(about)
        except InputError as error:
            reason = f"{error} (or give --model)"
    found += [Finding("base", None, reason)] if model is None else _fingerprints(about.base, model)
    pairs: dict[str, list[Pair]] = {}
    for of, place in (("data", data), ("valid", valid)):
        if about.fingerprint(of):
            found.append(_data(of, about, place, pairs))
        elif place is not None:
            raise InputError(
                f"--{of} {place}: the prefix records no fingerprint of its {of}: leave it out"
            )
    if about.evaluation is None:
        found.append(Finding("evaluation", True, "none was recorded"))
    elif model is None or not all(f.right for f in found if f.what in ("base", "tokenizer")):
        found.append(Finding("evaluation", None, "needs the model that it was trained on"))
    else:
        found += _replay(about.evaluation, about, model, prefix, pairs)
    return found


def _files(folder: Path, recorded: dict[str, str]) -> Finding:
    for name, was in recorded.items():
        if name not in artifact.FILES or not (folder / name).is_file():
            return Finding("files", False, f"{name} was saved and is missing")
        data = read_bytes(folder / name, "a file of the prefix")
        now = hashlib.sha256(data).hexdigest()
        if now != was:
            text = f"{name}: sha256 {was[:12]}... was recorded, it has {now[:12]}..."
            return Finding("files", False, text)
    for name in set(artifact.FILES) - {ABOUT} - set(recorded):
        if (folder / name).exists():
            return Finding("files", False, f"{name} was not saved with the others")
    return Finding("files", True, f"{', '.join(sorted(recorded))}: as saved")


def recorded_model(about: Provenance) -> GPT2:
    """The base that a record names. Where that is "tiny", the fingerprint tells the model that
    ships from a folder of that name."""
    name = about.base.name
    if name == SHIPPED and (shipped := GPT2.load()).fingerprint() == about.base.sha256:
        return shipped
    return GPT2.load(name, revision=about.revision)


def _fingerprints(recorded: Base, model: GPT2) -> list[Finding]:
    found = []
    for what, was, now in (
        ("base", recorded.sha256, model.fingerprint()),
        ("tokenizer", recorded.tokenizer_sha256, model.tokenizer_fingerprint()),
    ):
        if was is None or now is None:
            missing = "was recorded" if was is None else f"belongs to {model.name!r}"
            found.append(Finding(what, None, f"no fingerprint {missing}"))
        elif was == now:
            found.append(Finding(what, True, f"{model.name}, sha256 {now[:12]}..."))
        elif what == "tokenizer" and was == earlier_tokenizer_fingerprint(model.folder):
            text = f"{model.name}, recorded by a version that read its tokenizer alone"
            found.append(Finding(what, True, text))
        else:
            text = f"sha256 {was[:12]}... was recorded, {model.name!r} has {now[:12]}..."
            found.append(Finding(what, False, text))
    return found


def _data(
    of: str, about: Provenance, place: str | Path | None, pairs: dict[str, list[Pair]]
) -> Finding:
    """Whether a data file is the recorded one; its pairs go into `pairs` if it is."""
    options, recorded = about.options, about.fingerprint(of)
    assert recorded is not None
    if about.command == "demo" and place is None:
        path: str | Path | None = "the tiny world"
        read = demo.recorded_pairs(of, options.get("seed", 0))
        actual = demo.fingerprint(read)
    else:
        path = options.get(of) if place is None else place
        if path is None or not Path(path).is_file():
            return Finding(of, None, f"{path} is missing: give --{of}")
        actual = fingerprint(path)
        if actual == recorded:
            read = read_pairs(path, options.get("source_column"), options.get("target_column"))
    if actual != recorded:
        text = f"sha256 {recorded[:12]}... was recorded, {path} has {actual[:12]}..."
        return Finding(of, False, text)
    pairs[of] = read
    return Finding(of, True, f"{path}, sha256 {actual[:12]}...")


def _replay(
    recorded: Evaluation,
    about: Provenance,
    model: GPT2,
    prefix: Prefix | Method,
    pairs: dict[str, list[Pair]],
) -> list[Finding]:
    prefix = prefix.to(model.backend)
    template = Template() if about.template is None else Template(about.template)
    of, found = recorded.of, []
    if of in pairs:
        skip = bool(about.options.get("skip_long"))
        # a version without that option left out pairs whose last token, a target, had no position
        room = model.room(prefix) - (skip and "valid_samples" not in about.options)
        encoded = encode_pairs(model, pairs[of], template, room, skip)[: recorded.examples]
        loss = mean_loss(model, prefix, encoded, None, BATCH)
        matmul = about.settings.get("matmul", "float32")
        right = len(encoded) == recorded.examples and math.isclose(
            loss, recorded.loss, rel_tol=TOLERANCE[matmul]
        )
        pairs_of = f"{counted(len(encoded), 'pair')} of {of}"
        text = f"{loss:.6f} on {pairs_of}, {recorded.loss:.6f} was recorded"
        found.append(Finding("loss", right, text))
    else:
        found.append(Finding("loss", None, f"needs the recorded {of}"))
    samples, decoding = recorded.samples, Decoding(max_new_tokens=recorded.max_new_tokens)
    sources = [sample["source"] for sample in samples]
    written = predict(model, prefix, sources, template, decoding)
    for sample, text in zip(samples, written, strict=True):
        if text != sample["prediction"]:
            said = f"{text!r} for {sample['source']!r}, {sample['prediction']!r} was recorded"
            return [*found, Finding("samples", False, said)]
    return [*found, Finding("samples", True, f"{counted(len(samples), 'text')}, word for word")]
