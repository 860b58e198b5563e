"""Show where the chorus tokens of one or several models attend in a picture.

Writes OUT/sheet.png with all tokens of all models, a heat-map for each in OUT/MODEL/, and the
figures in OUT/look.json: how much attention is on the picture at all, how evenly a token looks
(entropy), how much of the picture all tokens cover together, and how alike two tokens look
(overlap).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from crem_jax.errors import CremError

EXAMPLES = """\
  crem look runs/emoji photo.jpg
  crem look runs/emoji photo.jpg --text "find the key" --layers last
  crem look runs/ablation/{retrieval_only,generation_only,crem}/0 photo.jpg --out arms"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import step

    parser.add_argument("models", metavar="MODEL", nargs="+", help="run directories or others")
    parser.add_argument("image", metavar="IMAGE", help="a picture, of any size and kind")
    parser.add_argument("--text", default="", metavar="TEXT", help="compressed with the picture")
    parser.add_argument(
        "--layers",
        default="all",
        metavar="all|last|0,1,…",
        help="mean over these decoder layers (default: all)",
    )
    parser.add_argument("--out", default="look", metavar="DIR", help="default: ./look")
    parser.add_argument(
        "--step", type=step, default="best", metavar="best|last|N", help="checkpoint of the runs"
    )


def run(args: argparse.Namespace) -> None:
    from crem_jax.commands.output import print_json, print_table
    from crem_jax.files import write_json
    from crem_jax.inference.attention_maps import attention_maps
    from crem_jax.inference.model import load
    from crem_jax.report.attention_maps import contact_sheet, save_overlays

    picture, out = Path(args.image), Path(args.out)
    item = {"image": picture, "text": args.text}
    by_model = {}
    for name, directory in zip(_names(args.models), args.models, strict=True):
        model = load(directory, args.step)
        by_model[name] = attention_maps(
            model, item, _layers(args.layers, model.config.text.num_layers)
        )
    for name, one in by_model.items():
        save_overlays(picture, one, out / name)
    contact_sheet(picture, by_model, out / "sheet.png")
    found = {
        "image": args.image,
        "text": args.text,
        "layers": args.layers,
        "sheet": str(out / "sheet.png"),
        "models": {name: one.figures() for name, one in by_model.items()},
    }
    write_json(out / "look.json", found)
    if args.json:
        print_json(found)
        return
    columns = ("on picture", "entropy", "coverage", "overlap")
    rows = []
    for name, figures in found["models"].items():
        values = [figures[column.replace(" ", "_")] for column in columns]
        rows.append([*("–" if v is None else f"{v:.3f}" for v in values), name])
    print_table((*columns, "model"), rows)
    print(f"see {out / 'sheet.png'}")


def _layers(text: str, count: int) -> list[int] | None:
    if text == "all":
        return None
    if text == "last":
        return [count - 1]
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise CremError(f"--layers {text!r} is not all, last or numbers with commas")
    return [int(part) for part in parts]


def _names(directories: Sequence[str]) -> list[str]:
    """The shortest distinct suffixes of the paths, usable as folder names."""
    paths = [Path(directory).absolute().parts for directory in directories]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["-".join(part.strip("/") for part in parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise CremError(f"a model is given twice: {', '.join(directories)}")
