"""`crem find` for a library: searches, asks, draws and prints."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from crem_jax.commands.output import print_json, print_table
from crem_jax.data.records import Item
from crem_jax.inference.model import load
from crem_jax.library.entry import Entry
from crem_jax.library.library import open as open_library
from crem_jax.report.figures import retrieval_grid


def run(args: argparse.Namespace) -> None:
    """Runs `crem find` on the library `args.folder`."""
    library = open_library(args.folder)
    library.info.column(args.k)
    library.check_condition(args.where)
    model = load(args.model, args.step, weights=args.weights)
    image = Path(args.image) if args.image else None
    query = Item(text=args.words or "", images=(image,) if image else ())
    hits = library.find(model, query, args.k, args.top, args.where, args.exact)
    answers = [""] * len(hits)
    if args.ask is not None:
        answers = library.ask(model, [hit.entry.id for hit in hits], args.ask, args.k)
    drawn = [
        (_shown(hit.entry), f"{hit.score:.3f} {os.path.basename(hit.entry.id)}", None)
        for hit in hits
    ]
    retrieval_grid([(image or args.words, drawn)], args.out, top=args.top)
    if args.json:
        asked = [] if args.ask is None else [("answer", answers)]
        print_json(
            {
                "query": {"text": args.words, "image": args.image},
                "k": args.k or library.info.num_chorus,
                "where": args.where,
                "results": [
                    {
                        "rank": i + 1,
                        "score": round(hit.score, 6),
                        "id": hit.entry.id,
                        "file": hit.entry.uri,
                        "text": hit.entry.text,
                        "metadata": hit.entry.metadata,
                        **{name: values[i] for name, values in asked},
                    }
                    for i, hit in enumerate(hits)
                ],
                "grid": args.out,
            }
        )
        return
    sought = " and ".join(part for part in (args.words, args.image) if part)
    title = f"{sought} in {args.folder}" + (f": {args.ask}" if args.ask else "")
    rows = [
        (str(rank), f"{hit.score:.3f}", hit.entry.id, answer if args.ask else hit.entry.text)
        for rank, (hit, answer) in enumerate(zip(hits, answers, strict=True), 1)
    ]
    print_table(("rank", "score", "id", "answer" if args.ask else "text"), rows, title)
    print(f"drawn in {args.out}")


def _shown(entry: Entry) -> bytes | str:
    """The stored thumbnail, as the file may not exist any more, or the text if there is none."""
    return entry.thumbnail or entry.text or entry.id
