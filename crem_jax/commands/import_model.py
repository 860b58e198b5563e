"""Turn a Hugging Face Qwen2-VL or CREM directory into a model directory.

A plain Qwen2-VL gets chorus tokens in spare rows of its vocabulary, ready to be trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
  crem import Qwen2-VL-2B-Instruct models/qwen
  crem import Qwen2-VL-2B-Instruct models/qwen --chorus 8
  crem import exported-crem models/crem"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import whole

    parser.add_argument("source", metavar="HF_DIR", help="a directory with config.json")
    parser.add_argument("out", metavar="OUT", help="the model directory to make")
    parser.add_argument(
        "--chorus",
        type=whole,
        default=16,
        metavar="K",
        help="chorus tokens for a model without any (default 16); 0 leaves it plain",
    )


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already; expected a new or empty directory")

    from crem_jax.checkpoint import save_model
    from crem_jax.commands.output import print_json
    from crem_jax.convert.chorus import add_chorus
    from crem_jax.convert.huggingface import import_hf

    config, params, tokenizer = import_hf(args.source)
    had = config.num_chorus
    if args.chorus:
        config, params, tokenizer = add_chorus(config, params, tokenizer, args.chorus)
    save_model(out, config, params, tokenizer)
    if args.json:
        print_json({"model": str(out), "num_chorus": config.num_chorus, "had_chorus": bool(had)})
        return
    if had:
        chorus = f"with its {had} chorus tokens"
    elif config.num_chorus:
        chorus = f"with {config.num_chorus} new, untrained chorus tokens"
    else:
        chorus = "without chorus tokens: it tells and cannot find"
    print(f"{out}: imported from {args.source} {chorus}")
