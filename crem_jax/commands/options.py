"""Arguments shared by several verbs, and argument types (errors become usage messages)."""

from __future__ import annotations

import argparse

from crem_jax.config import DTYPES, WEIGHTS


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and --step."""
    parser.add_argument("model", metavar="MODEL", help="a run directory or a Hugging Face one")
    parser.add_argument(
        "--step",
        type=step,
        default="best",
        metavar="best|last|N",
        help="which checkpoint of a run (default: best)",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """--config of the verbs that train."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE[:OPTION]",
        help="a recipe of the package by name (emoji, own, …) or a config FILE.py, and an option "
        "of it; --config.KEY=VALUE changes a key (docs/config.md)",
    )


def take_overrides(
    parser: argparse.ArgumentParser, args: argparse.Namespace, rest: list[str]
) -> None:
    """Keeps the overrides of config keys; anything else is an error."""
    for text in rest:
        if text.startswith("-") and not text.lstrip("-").startswith("config."):
            parser.error(f"unknown argument {text}")
    args.overrides = rest


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, for verbs that run a model."""
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="hold the decoder's weights in this type (default: float32)",
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype and --verify, for verbs that write weights."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="type of the written weights (default: as they are stored)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read everything back and compare, bit by bit"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed and `add_precision`'s arguments, for verbs that encode many items."""
    parser.add_argument(
        "--distributed",
        default="off",
        metavar="off|auto|HOST:PORT,N,I",
        help="processes that share the work, as for `crem train` (default: off)",
    )
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype and --workers."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the arithmetic")
    parser.add_argument("--workers", type=positive_int, metavar="N", help="decoding threads")


def step(text: str) -> int | str:
    """ "best", "last" or a step number."""
    if text in ("best", "last"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not best, last or a step number")


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """A whole number of at least 0."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def positive_fraction(text: str) -> float:
    """A number in (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value


def fraction(text: str) -> float:
    """A number in [0, 1]."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
