"""Look after a library: what is in it (stats), tidy it up (compact), check all of it (verify), see
it (map).

verify reads every entry and memory, and measures how many of the true nearest neighbours a search
finds, on the library's own vectors. Its exit code is 1 if anything is wrong.

map draws thumbnails where the two principal components of the embeddings put them: what lies close
together is alike to the model.
"""

from __future__ import annotations

import argparse

EXAMPLES = """\
  crem library stats photos.crem
  crem library compact photos.crem
  crem library verify photos.crem --json
  crem library map photos.crem --out map.png"""

WRONG = 1
"""Exit code when `verify` finds something wrong."""

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import positive_int

    parser.add_argument("action", choices=("stats", "compact", "verify", "map"), help="what to do")
    parser.add_argument("library", metavar="DIR", help="what `crem index` made")
    parser.add_argument(
        "--queries",
        type=positive_int,
        default=64,
        metavar="N",
        help="to measure recall (default 64)",
    )
    parser.add_argument("--out", default="map.png", metavar="FILE", help="of map (default map.png)")
    parser.add_argument(
        "--cells",
        type=positive_int,
        default=24,
        metavar="N",
        help="of map, along a side (default 24)",
    )


def run(args: argparse.Namespace) -> int:
    from crem_jax.commands.output import print_json
    from crem_jax.library.library import open as open_library

    library = open_library(args.library)
    if args.action == "verify":
        return _verify(library, args)
    if args.action == "map":
        return _map(library, args)
    result = library.stats() if args.action == "stats" else library.compact()
    if args.json:
        print_json(result)
        return 0
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_shown(key, one)}" for key, one in value.items())
        print(f"{name:12} {value}")
    return 0


def _map(library, args: argparse.Namespace) -> int:
    from crem_jax.commands.output import print_json
    from crem_jax.report.embedding_map import draw_map

    found = draw_map(library, args.out, cells=args.cells)
    if args.json:
        print_json({**found, "map": args.out})
        return 0
    share = f"{100 * found['variance']:.0f} % of the variance"
    print(f"{args.out}: {found['drawn']} of {found['entries']} entries, {share}")
    return 0


def _verify(library, args: argparse.Namespace) -> int:
    from crem_jax.commands.output import print_json, print_table

    found = library.verify(queries=args.queries)
    problems = found["problems"]
    if args.json:
        found["problems"] = [{"id": name, "reason": reason} for name, reason in problems]
        print_json(found)
        return WRONG if problems else 0
    if problems:
        print_table(("id", "what is wrong"), problems[:_SHOWN], f"{len(problems)} problems")
    print(f"{found['entries']} entries, {found['memories']} memories, {len(problems)} problems")
    if found["orphans"]:
        print(f"{found['orphans']} memories of no entry: `crem library compact` drops them")
    if not found["recall"]:
        print(f"search: {found['search']}, nothing to measure")
    for k, recall in found["recall"].items():
        measured = f"{found['top']} on {found['queries']} of its own vectors"
        print(f"search by k = {k}: {found['search']}, recall {recall:.4f} of {measured}")
    return WRONG if problems else 0


def _shown(key: str, value) -> str:
    return f"{value / 1e6:.1f} MB" if key == "bytes" else str(value)
