"""Serve a model, and a library, over HTTP: OpenAI's interface, searching, asking, and a page.

It listens on this machine alone unless --host says otherwise, and then needs a token: from
--token_file, or the environment variable CREM_TOKEN. On SIGTERM it finishes running requests.
docs/serve.md has the interface, the limits, and how to run it behind a proxy.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from crem_jax.errors import CremError
from crem_jax.files import read_text

EXAMPLES = """\
  crem serve --model runs/quickstart --library runs/quickstart/library
  crem serve --model runs/crem-2b --port 9000 --dtype bfloat16 --no_page
  crem serve --model runs/crem-2b --host 0.0.0.0 --token_file secret.txt
  crem serve --model runs/crem-2b --allow_url https://pictures.example.com/public/"""

TOKEN = "CREM_TOKEN"
SHORTEST_TOKEN = 16
"""Characters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from crem_jax.commands.options import add_weights, positive_float, positive_int, step

    parser.add_argument("--model", required=True, metavar="MODEL", help="a run or model directory")
    parser.add_argument(
        "--step", type=step, default="best", metavar="best|last|N", help="which checkpoint of a run"
    )
    add_weights(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic"
    )
    parser.add_argument("--library", metavar="DIR", help="what `crem index` made with this model")
    parser.add_argument("--name", metavar="NAME", help="of the model (default: its directory's)")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1")
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="default: 8000; 0 any"
    )
    parser.add_argument("--no_page", action="store_true", help="the interface alone, no page")
    access = parser.add_argument_group("who may come in")
    access.add_argument("--token_file", metavar="FILE", help=f"holds the token (or set {TOKEN})")
    access.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name too, without a token (behind a proxy)",
    )
    access.add_argument(
        "--allow_url",
        action="append",
        default=[],
        metavar="PREFIX",
        help="fetch pictures from below this URL (default: none)",
    )
    limits = parser.add_argument_group("limits")
    for name, kind, what in (
        ("requests", positive_int, "at a time, waiting ones included; more get 429"),
        ("rows", positive_int, "embeddings in a batch, and answers generated at a time"),
        ("deadline", positive_float, "seconds for a request; then 504"),
        ("tokens", positive_int, "of an answer at most"),
        ("inputs", positive_int, "embeddings of a request"),
        ("images", positive_int, "pictures of a request, or of one of its inputs"),
        ("pixels", positive_int, "of a picture"),
        ("picture_seconds", positive_float, "to decode a picture"),
        ("body_bytes", positive_int, "of a request"),
        ("connections", positive_int, "at one time"),
    ):
        default = getattr(_limits(), name)
        limits.add_argument(
            f"--max_{name}" if name != "deadline" else "--deadline",
            dest=f"limit_{name}",
            type=kind,
            default=default,
            metavar="N",
            help=f"{what} (default {int(default):,})",
        )


def run(args: argparse.Namespace) -> None:
    token = _token(args)
    try:
        from crem_jax.serve.http.access import LOOPBACK_NAMES, Access, is_loopback
        from crem_jax.serve.inputs.remote import Fetcher
        from crem_jax.serve.service import Service
    except ImportError as error:
        raise CremError(f"serving needs {error.name}: pip install 'crem_jax[serve]'") from error
    page = not args.no_page and _has_page()
    if token is None and not is_loopback(args.host):
        raise CremError(
            f"--host {args.host} can be reached from elsewhere, which needs a token: --token_file, "
            f"or the environment variable {TOKEN}"
        )
    limits = _limits(**{name[6:]: v for name, v in vars(args).items() if name.startswith("limit_")})
    fetcher = Fetcher(args.allow_url, limits.body_bytes) if args.allow_url else None

    from crem_jax.inference.model import load
    from crem_jax.library.library import open as open_library
    from crem_jax.serve.http.app import make_app
    from crem_jax.serve.http.server import listen, make_server

    listener = listen(args.host, args.port)
    library = open_library(args.library) if args.library else None
    model = load(args.model, args.step, dtype=args.dtype, weights=args.weights)
    name = args.name or Path(args.model).resolve().name
    service = Service(model, name, library, limits, fetcher)
    access = Access(token, LOOPBACK_NAMES | {host.lower() for host in args.allow_host})
    server = make_server(make_app(service, access, page), service)
    server.on_start = lambda port: _announce(args, name, port, page, token)
    server.run([listener])


def _announce(args: argparse.Namespace, name: str, port: int, page: bool, token) -> None:
    from crem_jax.commands.output import print_json

    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"http://{host}:{port}"
    if args.json:
        print_json({"url": url, "model": name, "library": args.library, "page": page})
        return
    print(f"serving {name}" + (f" and {args.library}" if args.library else ""))
    print(f"  interface  {url}/v1" + ("  (with the token)" if token else ""))
    if page:
        print(f"  page       {url}/" + ("  (any user, the token as password)" if token else ""))
    sys.stdout.flush()


def _limits(**values):
    from crem_jax.serve.limits import Limits

    return Limits(**values)


def _token(args: argparse.Namespace) -> str | None:
    token, where = os.environ.get(TOKEN), TOKEN
    if args.token_file is not None:
        token, where = read_text(args.token_file).strip(), args.token_file
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise CremError(
            f"the token in {where} has {len(token)} characters; expected at least {SHORTEST_TOKEN}"
        )
    return token


def _has_page() -> bool:
    import importlib.util

    if importlib.util.find_spec("gradio"):
        return True
    print("crem serve: no page: pip install 'crem_jax[ui]'", file=sys.stderr)
    return False


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
