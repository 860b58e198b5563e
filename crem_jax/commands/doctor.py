"""Check every record of a source of training data: decode pictures, count tokens, find duplicates.

SOURCE is written as for `crem prepare`. Into OUT go index.json (give it to the source as `index`,
and only good records are read), quarantine.jsonl (what is left out, and why), warnings.jsonl,
histograms.png and report.json. The exit code is 1 if any record is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crem_jax.errors import CremError

EXAMPLES = """\
  crem doctor pairs.jsonl
  crem doctor photos --out checked --max_aspect 20
  crem doctor mmeb:MMEB-train,subset=WebQA --tokenizer Qwen2-VL-2B-Instruct --json
  crem doctor talk.json --keep duplicate --keep tokens"""

FOUND = 1
"""Exit code when a record is left out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import non_negative_float, positive_int

    parser.add_argument("source", metavar="SOURCE", help="PATH, or KIND:PATH,KEY=VALUE,…")
    parser.add_argument(
        "--out", default="doctor", metavar="OUT", help="where the findings go (default: ./doctor)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="FAULT",
        help="faults to list but not to leave a record out for, such as duplicate or aspect",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="a model whose tokenizer counts (default: the small one)"
    )
    parser.add_argument(
        "--max_tokens",
        type=positive_int,
        default=4096,
        metavar="N",
        help="of a text (default: 4096)",
    )
    parser.add_argument(
        "--max_pixels", type=positive_int, metavar="N", help="of a picture (default: 178956970)"
    )
    parser.add_argument(
        "--max_aspect",
        type=positive_int,
        default=200,
        metavar="N",
        help="long over short side of a picture (default: 200)",
    )
    parser.add_argument(
        "--seconds",
        type=non_negative_float,
        default=60.0,
        metavar="S",
        help="a record (default: 60)",
    )
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="processes (default: cores)"
    )


def run(args: argparse.Namespace) -> int:
    from crem_jax.commands.output import counting, print_json, print_table
    from crem_jax.data.sources.command_line import describe, parse_source
    from crem_jax.data.sources.registry import make_source
    from crem_jax.data.tools.doctor import FAULTS, examine
    from crem_jax.data.tools.inspect_record import Limits
    from crem_jax.processes import default_workers
    from crem_jax.report.doctor import write_findings
    from crem_jax.train.setup import TOKENIZER_DIR

    unknown = [fault for fault in args.keep if fault not in FAULTS]
    if unknown:
        raise CremError(f"--keep {unknown[0]!r} is no fault; faults: {', '.join(FAULTS)}")
    tokenizer = Path(args.tokenizer or TOKENIZER_DIR) / "tokenizer.json"
    if not tokenizer.is_file():
        raise FileNotFoundError(f"{tokenizer} does not exist")
    kind, arguments = parse_source(args.source)
    if "index" in arguments or "limit" in arguments:
        raise CremError("the index is made for a whole source; leave out index and limit")
    source = make_source(kind, arguments, args.source)
    chosen = {"max_pixels": args.max_pixels} if args.max_pixels else {}
    limits = Limits(
        max_aspect=args.max_aspect, max_tokens=args.max_tokens, seconds=args.seconds, **chosen
    )
    with counting(len(source), "checking") as progress:
        workers = args.workers or default_workers()
        diagnosis = examine(source, limits, tokenizer, workers, tuple(args.keep), progress)
    left_out = dict(getattr(source, "left_out", {}))
    report = write_findings(diagnosis, describe(kind, arguments), left_out, Path(args.out))
    if args.json:
        print_json(report)
    else:
        rows = [
            (kind, str(count), next(_reasons(diagnosis, kind), ""))
            for kind, count in diagnosis.counts.items()
        ]
        if rows:
            print_table(("fault", "records", "the first"), rows, report["source"])
        print(
            f"{report['good']} of {report['records']} records are good: "
            f"{args.out}/index.json; the others: {args.out}/quarantine.jsonl"
        )
        for reason, count in left_out.items():
            print(f"left out by the format's rules: {count} rows, {reason}")
    return 0 if report["good"] == report["records"] else FOUND


def _reasons(diagnosis, kind: str):
    return (
        entry["reason"]
        for entry in (*diagnosis.quarantine, *diagnosis.warnings)
        if entry["kind"] == kind
    )
