"""A real server on a free port of the loopback: in a thread, or in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import numpy as np
from PIL import Image

from crem_jax.serve.http.access import Access
from crem_jax.serve.http.app import make_app
from crem_jax.serve.http.server import listen, make_server
from crem_jax.serve.service import Service


@contextlib.contextmanager
def serving(service: Service, access: Access | None = None, page: bool = False) -> Iterator[str]:
    """The URL of a server, which drains at the end."""
    server = make_server(make_app(service, access, page), service)
    started = threading.Event()
    ports: list[int] = []
    server.on_start = lambda port: (ports.append(port), started.set())
    thread = threading.Thread(target=server.run, args=([listen("127.0.0.1", 0)],))
    thread.start()
    try:
        assert started.wait(60)
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not drain"


@contextlib.contextmanager
def served(model, compiled, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`crem serve` in a process of its own, and its URL.

    Args:
      compiled: directory of compiled code. options: of the command line.
    """
    command = [sys.executable, "-m", "crem_jax", "serve", "--model", model, "--port", "0"]
    server = subprocess.Popen(
        [*map(str, command), "--no_page", "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled)},
    )
    try:
        yield server, json.loads(server.stdout.readline())["url"]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60)


def draw(seed: int, size: tuple[int, int] = (30, 24)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def data_uri(image: Image.Image, form: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
