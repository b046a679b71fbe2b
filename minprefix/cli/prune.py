"""`minprefix prune`: the slots that draw most attention."""

import argparse
from pathlib import Path

from minprefix.cli import options
from minprefix.cli.made import of_one_base, save_made
from minprefix.cli.parser import Command
from minprefix.errors import InputError, counted


def add(command: Command) -> None:
    p = command(
        "prune",
        run,
        "keep a prefix's slots that draw the most attention (an experiment)",
        "minprefix prune runs/demo --keep 5 --data valid.jsonl --out runs/pruned",
    )
    p.add_argument("path", type=Path, metavar="DIR", help="a prefix")
    p.add_argument("--keep", type=int, metavar="N", required=True, help="keep N slots")
    options.path(p, "--data", "FILE", "pairs to measure attention on", required=True)
    options.count(p, "--limit", "measure on the first N pairs", default=100)
    options.add_columns(p)
    options.add_model(p, "the one that the prefix records")
    options.add_threads(p)
    options.add_out(p)


def run(args: argparse.Namespace) -> int:
    from minprefix.batch import Batch
    from minprefix.data.pairs import Template, encode_pairs, fingerprint, read_pairs
    from minprefix.evaluate import mean_loss
    from minprefix.prefixes.combine import prune, slot_attention
    from minprefix.storage.run import refuse_taken

    refuse_taken(args.out, args.force)
    (prefix,), record, model = of_one_base([args.path], args)
    template = Template(record[0].template or Template().text)
    pairs = read_pairs(args.data, args.source_column, args.target_column)[: args.limit]
    room = model.config.n_positions - prefix.position_offset
    encoded = encode_pairs(model, pairs, template, room, skip_long=True)
    if not encoded:
        says = f"every pair is longer than the {room} tokens of room"
        raise InputError(f"data file {args.data}: {says}")
    batch = Batch.pack([e.ids for e in encoded], [e.loss_from for e in encoded])
    shares = slot_attention(model, prefix, batch)
    made = prune(prefix, shares, args.keep)
    print(f"share of the attention that each slot draws, on {counted(len(encoded), 'pair')}:")
    for slot, share in enumerate(shares.mean(axis=(0, 1))):
        print(f"  slot {slot:<4} {share:.4f}")
    before, after = (mean_loss(model, p, encoded) for p in (prefix, made))
    slots, none = counted(prefix.length, "slot"), mean_loss(model, None, encoded)
    print(f"loss of {slots} {before:.4f}, of {made.length} {after:.4f}, of none {none:.4f}")
    columns = {"source_column": args.source_column, "target_column": args.target_column}
    how = {"command": "prune", "keep": args.keep, "loss": [before, after]}
    how |= {"data_sha256": fingerprint(args.data), "options": {"data": str(args.data), **columns}}
    save_made(args, made, record, how, model)
    return 0
