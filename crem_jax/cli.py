"""The console script `crem`: `crem VERB …`, one module of crem_jax.commands a verb.

What is the user's to mend is one line on stderr; every other error is a bug and keeps its traceback
(docs/errors.md).
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from crem_jax.commands.memory import use_huge_pages
from crem_jax.errors import CremError
from crem_jax.files import WriteFailed

VERBS = {
    "train": ("train", "train a model from a config, or resume its run"),
    "plan": ("plan", "what a training step needs of a TPU pod, before it is rented"),
    "ablate": ("ablate", "compare ways to train: the paper's tables, and studies of one setting"),
    "eval": ("evaluate", "measure how well a model finds and tells"),
    "eval mmeb": ("evaluate_mmeb", "measure how well a model finds, on MMEB"),
    "eval comprehension": ("evaluate_comprehension", "measure what a model understands"),
    "report": ("report", "gather a run in one HTML page"),
    "find": ("find", "rank a folder or a library by words, by a picture, or both"),
    "look": ("look", "see what the chorus tokens look at in a picture"),
    "tell": ("tell", "ask about a picture, or about an entry of a library"),
    "index": ("index", "put pictures and texts into a library"),
    "library": ("library", "look after a library: stats, compact, verify, map"),
    "serve": ("serve", "answer over HTTP: OpenAI's interface, searching, asking, a page"),
    "prepare": ("prepare", "write training data as a sharded tfds data set"),
    "doctor": ("doctor", "check every record of training data"),
    "synthesize": ("synthesize", "have a teacher write question-answer pairs on retrieval data"),
    "import": ("import_model", "turn a Hugging Face directory into a model directory"),
    "export": ("export_model", "turn a model into a Hugging Face directory"),
}
"""verb: (module of crem_jax.commands, what it does)."""

RESUMED = ("train", "ablate", "index", "eval mmeb", "eval comprehension")
"""Verbs that go on where they were interrupted."""

USAGE = 2
"""Exit code for what was asked wrongly or cannot be used."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `crem`.

    Returns:
      The exit code: 0; 2 for a CremError or an OSError, which is arguments, files or models that
      cannot be used (one line on stderr says why); 1 for a WriteFailed, which the same command may
      not meet again (likewise); 130 when interrupted.

    Raises:
      Every other exception, for it is a bug: a ValueError of numpy's as well. With `--debug` or
      CREM_DEBUG=1 those above too.
    """
    from_shell = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        import crem_jax

        print(f"crem {crem_jax.__version__}")
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS else 1
    verb, rest = " ".join(argv[:words]), argv[words:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(VERBS)}"
        return _refuse("crem", f"{verb!r} is no verb; {hint}")
    if from_shell and argv[0] in ("train", "ablate", "eval", "import", "export"):
        use_huge_pages()
    command = importlib.import_module(f"crem_jax.commands.{VERBS[verb][0]}")
    try:
        args = _parse(verb, command, rest)
    except SystemExit as stop:
        return int(stop.code or 0)
    if args.debug:
        return command.run(args) or 0
    _hush()
    if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text, nor a terminal UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return command.run(args) or 0
    except BrokenPipeError:  # the reader has left: `crem find … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CremError, OSError) as error:
        return _refuse(f"crem {verb}", _reason(error))
    except WriteFailed as error:
        print(f"crem {verb}: {_reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; the same command goes on" if verb in RESUMED else ""
        print(f"crem {verb}: interrupted{hint}", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parse(verb: str, command, argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=f"crem {verb}",
        description=command.__doc__,
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--debug",
        action="store_true",
        default=os.environ.get("CREM_DEBUG", "0") not in ("", "0"),
        help="show tracebacks and the libraries' warnings",
    )
    if not hasattr(command, "take_rest"):
        return parser.parse_intermixed_args(argv)
    args, rest = parser.parse_known_args(argv)
    command.take_rest(parser, args, rest)
    return args


def _help() -> str:
    verbs = "\n".join(f"  {verb:20}{what}" for verb, (_, what) in VERBS.items())
    return (
        "usage: crem VERB …\n\n"
        "CREM: one model that finds pictures and tells about them.\n\n"
        f"verbs:\n{verbs}\n\n"
        "  crem VERB --help    its arguments, with examples\n"
        "  crem --version      the version\n\n"
        "MODEL is what `crem train` or `crem import` made, or a Hugging Face directory."
    )


def _hush() -> None:
    """Keeps the libraries' notices off the terminal; what the user set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("jax", "orbax", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        files = " → ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
        return f"{files}: {error.strerror}" if files else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(prog: str, reason: str) -> int:
    print(f"{prog}: {reason}", file=sys.stderr)
    return USAGE
