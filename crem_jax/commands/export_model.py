"""Turn a model into a Hugging Face directory that plain transformers opens.

The model card is filled from the run: its recipe, and its figures if `crem eval` has been run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from crem_jax.errors import CremError

EXAMPLES = """\
  crem export runs/emoji exported
  crem export runs/emoji exported --dtype bfloat16 --step last --overwrite
  crem export runs/lora adapter --adapter Qwen/Qwen2-VL-2B-Instruct"""

_TOLD = ("steps", "seed", "loss", "optim")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_model, add_writing, positive_float

    add_model(parser)
    parser.add_argument("out", metavar="HF_DIR", help="the directory to make")
    add_writing(parser)
    parser.add_argument(
        "--shard_gb",
        type=positive_float,
        default=5.0,
        metavar="GB",
        help="largest weight file, in 10^9 bytes (default 5)",
    )
    parser.add_argument(
        "--adapter",
        metavar="BASE",
        help="write the run's adapters alone, as a PEFT adapter of this base model",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a directory with files")


def run(args: argparse.Namespace) -> None:
    if args.adapter:
        _write_adapter(args)
    else:
        _write_model(args)


def _write_adapter(args: argparse.Namespace) -> None:
    from crem_jax.checkpoints.model_directory import open_model
    from crem_jax.commands.output import print_json
    from crem_jax.convert.peft import export_adapter

    config, params, tokenizer = open_model(args.model, args.step)
    if config.lora:
        _refuse_other_training(Path(args.model), params)
    export_adapter(config, params, tokenizer, args.out, base=args.adapter, overwrite=args.overwrite)
    if args.json:
        print_json({"directory": args.out, "base": args.adapter})
        return
    print(f"{args.out}: the adapters of {args.model}, for {args.adapter}")


def _refuse_other_training(directory: Path, params: dict[str, Any]) -> None:
    """Raises CremError if the run also trained parameters that an adapter does not contain."""
    from crem_jax.model.lora import is_adapter
    from crem_jax.train.optim import learning_rates

    rules = _read(directory / "recipe.json").get("optim", {}).get("rates", ())
    everything = {**params, "loss": {"log_temperature": 0.0}}  # rules may match it
    rates = learning_rates(rules, everything, adapted=True)
    del rates["loss/log_temperature"]
    others = [path for path, rate in rates.items() if rate and not is_adapter(path)]
    if others:
        raise CremError(
            f"{directory} has trained {', '.join(others)} too (optim.rates), which an adapter does "
            "not hold; export without --adapter, which merges all of it"
        )


def _write_model(args: argparse.Namespace) -> None:
    import jax

    from crem_jax.checkpoints.open import open_parts
    from crem_jax.commands.output import print_json
    from crem_jax.commands.progress import bytes_bar
    from crem_jax.convert.huggingface import export_hf

    since = time.perf_counter()
    config, params, tokenizer = open_parts(args.model, args.step)
    if args.dtype:
        params = jax.tree.map(lambda leaf: leaf.astype(args.dtype), params)
    card = card_facts(Path(args.model))
    with bytes_bar("exporting", sum(leaf.nbytes for leaf in jax.tree.leaves(params))) as on_bytes:
        export_hf(
            config,
            params,
            tokenizer,
            args.out,
            dtype=args.dtype,
            card=card,
            max_shard_bytes=int(args.shard_gb * 1e9),
            overwrite=args.overwrite,
            verify=args.verify,
            on_bytes=on_bytes,
        )
    dtype = str(params["backbone"]["embedding"].dtype)
    if args.json:
        print_json(
            {
                "directory": args.out,
                "dtype": dtype,
                "verified": args.verify,
                "seconds": round(time.perf_counter() - since, 2),
                "card": card,
            }
        )
        return
    print(f"{args.out}: exported from {args.model} in {dtype}")


def card_facts(directory: Path) -> dict[str, Any]:
    """The contents of the model card, from a model directory; see `convert.card.model_card`."""
    card: dict[str, Any] = {"name": directory.resolve().name}
    recipe = _read(directory / "recipe.json")
    if recipe:
        card["recipe"] = {key: _flat(recipe[key]) for key in _TOLD if key in recipe}
        data = recipe.get("data", {})
        shares = data.get("records", {})
        card["data"] = [
            f"{name}: {_flat(arguments)}; {shares.get(name, 0)} records a step"
            for name, arguments in data.get("sources", {}).items()
        ]
    if metrics := _read(directory / "summary.json"):
        card["metrics"] = {key: value for key, value in metrics.items() if value is not None}
    return card


def _read(path: Path) -> dict[str, Any]:
    from crem_jax.files import read_json

    return read_json(path) if path.exists() else {}


def _flat(value: Any) -> str:
    """A value in words; of a section, what is set."""
    if isinstance(value, dict):
        is_set = {key: entry for key, entry in value.items() if entry not in (None, "", [], {})}
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in is_set.items())
    return str(value)
