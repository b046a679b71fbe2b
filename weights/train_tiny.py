"""Train the model that ships in `weights/tiny`, by this package's own backward, on the tiny world.

    python weights/train_tiny.py --out weights/tiny

One seed decides the world, the tokenizer, the start and the order of documents. It takes about a
quarter of an hour on two idle cores. The settings below are the ones that the shipped model was
trained with.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tqdm import tqdm

from minprefix import GPT2, Batch, Config, Prefix, loss, loss_and_weight_grads
from minprefix.data import world
from minprefix.optim import AdamW, clip, global_norm, learning_rate

SEED = 0
VOCABULARY = 1024
STEPS, BATCH, LR, WARMUP, MAX_NORM = 2500, 64, 2e-3, 100, 1.0
END = "<|endoftext|>"


def make_tokenizer(rng: np.random.Generator) -> Tokenizer:
    """A byte-level BPE as GPT-2's, of 1024 entries; id 0 ends a document."""
    bpe = ByteLevelBPETokenizer()
    documents = (world.draw_document(rng) for _ in range(20_000))
    bpe.train_from_iterator(documents, VOCABULARY, special_tokens=[END], show_progress=False)
    return bpe._tokenizer


def draw_batch(
    config: Config, tokenizer: Tokenizer, rng: np.random.Generator, split: str
) -> tuple[Batch, list[Prefix]]:
    """Whole documents. Each starts at a position of its own, so that every position is learned and
    a prefix, which shifts the text by its length, is nothing new. An empty prefix says where a
    document starts."""
    sequences, starts = [], []
    for _ in range(BATCH):
        ids = [*tokenizer.encode(world.draw_document(rng, split)).ids, 0]
        room = config.n_positions - len(ids)
        starts.append(
            Prefix.zero(config, 0, position_offset=int(rng.integers(rng.choice([40, room]))))
        )
        sequences.append(ids)
    return Batch.pack(sequences, prefix=range(BATCH)), starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default {STEPS}")
    args = parser.parse_args()

    rng = np.random.default_rng(SEED)
    tokenizer = make_tokenizer(rng)
    config = Config(
        n_layer=4,
        n_head=5,
        n_embd=160,
        vocab_size=VOCABULARY,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2.random(config, seed=SEED)
    model.tokenizer, model.name = tokenizer, "tiny"
    adam, start, tokens = AdamW(beta2=0.99), time.time(), 0
    bar = tqdm(range(args.steps), unit="step")
    for step in bar:
        batch, starts = draw_batch(config, tokenizer, rng, "train")
        value, grads = loss_and_weight_grads(model, batch, starts)
        norm = global_norm(grads)
        clip(grads, norm, MAX_NORM)
        adam.step(model.weights, grads, learning_rate(step, args.steps, LR, WARMUP, "cosine"))
        tokens += len(batch.tokens)
        bar.set_postfix(loss=f"{value:.3f}", norm=f"{norm:.2f}")
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            held_out, starts = draw_batch(config, tokenizer, np.random.default_rng(SEED), "valid")
            valid = loss(model, held_out, starts)
            minutes = (time.time() - start) / 60
            tqdm.write(f"step {step + 1}: train {value:.4f}, valid {valid:.4f}, {minutes:.1f} min")
            model.save(args.out)
            record = {
                "script": "weights/train_tiny.py",
                "seed": SEED,
                "steps": step + 1,
                "of": args.steps,
                "batch_size": BATCH,
                "lr": LR,
                "tokens": tokens,
                "train_loss": round(value, 4),
                "valid_loss": round(valid, 4),
                "minutes": round(minutes, 1),
                "python": platform.python_version(),
                "numpy": np.__version__,
            }
            text = json.dumps(record, indent=2) + "\n"
            (args.out / "training.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
