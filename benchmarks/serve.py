"""A server under load on this machine: latencies, memory, and how it drains.

    python benchmarks/serve.py runs/quickstart --json
    python benchmarks/serve.py runs/quickstart --library pictures.crem --clients 64 --requests 16

Starts `crem serve` and lets --clients callers ask it for --seconds, without a pause: embeddings of
words and of pictures, searches, questions about stored memories, and chats about pictures, native
and streamed from the chorus. Whoever gets 429 waits as long as it is told. Then, in the middle of
it all, SIGTERM: what was begun must end well. Reported: calls a second, p50 and p99 of each kind
(those with 429 left out), statuses, errors, and the server's resident memory after the warm-up,
after each quarter, and at its peak. The callers need the same cores. Without --library one of the
held-out emoji is made first.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from crem_jax.data.emoji.emoji import WHAT, EmojiPictures

CALLS = {  # kind: its share
    "embed words": 0.3,
    "embed picture": 0.15,
    "search": 0.2,
    "ask stored": 0.15,
    "chat native": 0.1,
    "chat compressed, streamed": 0.1,
}
ANSWER = 12  # tokens
WARM = 20  # seconds of the same before anything is measured
MARGIN = 0.1  # seconds before SIGTERM within which a call counts as begun after it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model directory with chorus tokens")
    parser.add_argument("--library", help="what `crem index` made with it")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, help="the server's --max_requests")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = args.library or indexed(args.model, Path(folder) / "library")
        result = run(args, library)
    for name, value in result.items():
        print(f"{name:44}{value}")
    if args.json:
        print(json.dumps(result))
    bad = result["errors"] or result["cut off by SIGTERM"] or result["exit code"]
    return 1 if bad else 0


def indexed(model: str, place: Path) -> str:
    command = [sys.executable, "-m", "crem_jax", "index", model, "emoji:split=heldout"]
    subprocess.run([*command, "--library", place], check=True, stdout=sys.stderr)
    return str(place)


def run(args: argparse.Namespace, library: str) -> dict:
    command = [sys.executable, "-m", "crem_jax", "serve", "--model", args.model, "--port", "0"]
    command += ["--library", library, "--no_page", "--json"]
    command += ["--max_requests", str(args.requests)] if args.requests else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stop = threading.Event()
    try:
        address = urlsplit(json.loads(server.stdout.readline())["url"])
        bodies = Bodies(address)
        callers = [Caller(bodies, seed) for seed in range(args.clients)]
        threads = [threading.Thread(target=caller.until, args=(stop,)) for caller in callers]
        for thread in threads:
            thread.start()
        time.sleep(WARM)
        before, began = resident(server.pid), time.perf_counter()
        memory = []
        while time.perf_counter() - began < args.seconds:
            time.sleep(min(1.0, args.seconds / 10))
            memory.append(resident(server.pid))
        server.send_signal(signal.SIGTERM)
        stopped = time.perf_counter()
        code = server.wait(120)
        drained = time.perf_counter() - stopped
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        server.kill()
    done = [call for caller in callers for call in caller.done if call.began > began]
    return {
        "model": args.model,
        "clients": args.clients,
        **figures([call for call in done if call.began < stopped - MARGIN], stopped - began),
        "resident MB, warmed up": before,
        "resident MB, after each quarter": [memory[len(memory) * i // 4 - 1] for i in (1, 2, 3, 4)],
        "resident MB, peak": max(memory),
        "finished after SIGTERM": sum(
            c.began < stopped - MARGIN and c.ended > stopped for c in done
        ),
        "cut off by SIGTERM": sum(
            c.began < stopped - MARGIN and c.ended > stopped and not c.status for c in done
        ),
        "seconds to drain": round(drained, 2),
        "exit code": code,
    }


def figures(calls: list[Call], seconds: float) -> dict:
    kinds = defaultdict(list)
    for call in calls:
        if call.status == 200:
            kinds[call.kind].append(1000 * (call.ended - call.began))
    statuses = Counter(call.status for call in calls)
    times = [ms for some in kinds.values() for ms in some]
    return {
        "seconds": round(seconds, 1),
        "calls": len(calls),
        "calls a second": round(len(times) / seconds, 1),
        "status 200": statuses[200],
        "status 429": statuses[429],
        "errors": len(calls) - statuses[200] - statuses[429],
        **{f"ms p50 / p99, {kind}": middle(kinds[kind]) for kind in CALLS},
        "ms p50 / p99, all": middle(times),
    }


def middle(times: list[float]) -> list[float]:
    if len(times) < 2:
        return times
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return [round(cuts[49], 1), round(cuts[98], 1)]


def resident(pid: int) -> float:
    """Resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, 1)


class Bodies:
    """Requests of each kind: (path, body)."""

    def __init__(self, address):
        self.address = address
        emoji = EmojiPictures("heldout")
        self._names = [emoji[i].name for i in range(len(emoji))]
        self._pictures = [_data_uri(emoji.draw(i)) for i in range(0, len(emoji), 8)]
        body = json.dumps({"query": "a face", "top": 50})
        self._ids = [hit["id"] for hit in json.loads(post(self, "/v1/search", body)[1])["data"]]

    def make(self, kind: str, rng: np.random.Generator) -> tuple[str, str]:
        name, uri = rng.choice(self._names), self._pictures[rng.integers(len(self._pictures))]
        shown = {"type": "image_url", "image_url": {"url": uri}}
        asked = [{"role": "user", "content": [shown, {"type": "text", "text": WHAT}]}]
        said = {"messages": asked, "max_tokens": ANSWER}
        path, body = {
            "embed words": ("/v1/embeddings", {"input": name, "encoding_format": "base64"}),
            "embed picture": ("/v1/embeddings", {"input": [{"image": uri}]}),
            "search": ("/v1/search", {"query": name, "thumbnails": True}),
            "ask stored": (
                "/v1/ask",
                {"ids": [rng.choice(self._ids)], "question": WHAT, "max_tokens": ANSWER},
            ),
            "chat native": ("/v1/chat/completions", said),
            "chat compressed, streamed": (
                "/v1/chat/completions",
                {**said, "compressed": True, "stream": True},
            ),
        }[kind]
        return path, json.dumps(body)


class Call:
    """One request. status: 0 is a connection that failed."""

    def __init__(self, kind: str):
        self.kind, self.began, self.ended, self.status = kind, time.perf_counter(), 0.0, 0


class Caller:
    """Calls, one after another, over a connection that is kept."""

    def __init__(self, bodies: Bodies, seed: int):
        self._bodies, self._rng = bodies, np.random.default_rng(seed)
        self._connection = connect(bodies)
        self.done: list[Call] = []

    def until(self, stop: threading.Event) -> None:
        kinds, shares = list(CALLS), list(CALLS.values())
        while not stop.is_set():
            self.call(str(self._rng.choice(kinds, p=shares)))
            if not self.done[-1].status:  # what is wrong shows in the figures
                stop.wait(0.2)

    def call(self, kind: str) -> None:
        path, body = self._bodies.make(kind, self._rng)
        call = Call(kind)
        try:
            status, answer, headers = post(self._bodies, path, body, self._connection)
            whole = "stream" not in kind or status != 200 or answer.endswith(b"[DONE]\n\n")
            call.status = status if whole else 0
        except (OSError, http.client.HTTPException):
            self._connection.close()
            headers = {}
        call.ended = time.perf_counter()
        self.done.append(call)
        if call.status == 429:
            time.sleep(float(headers["Retry-After"]) * self._rng.uniform(0.5, 1))


def connect(bodies: Bodies) -> http.client.HTTPConnection:
    address = bodies.address
    return http.client.HTTPConnection(address.hostname, address.port, timeout=120)


def post(bodies: Bodies, path: str, body: str, connection=None) -> tuple:
    connection = connection or connect(bodies)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def _data_uri(picture) -> str:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


if __name__ == "__main__":
    sys.exit(main())
