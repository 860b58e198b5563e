"""Bodies of many elements are counted before they are built, and read no further than their first
error, beside the loop that answers all others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from crem_jax.serve.errors import ApiError
from crem_jax.serve.http import schemas
from crem_jax.serve.http.json_bounds import DEPTH, check_json
from crem_jax.serve.http.request_limits import at_leisure
from crem_jax.serve.limits import Limits
from tests.support.abuse_bodies import GOOD, mutated, swollen
from tests.support.abuse_requests import ASK, CHAT, EMBED, SEARCH, as_json
from tests.support.serving import client, served

ELEMENTS = Limits().elements
SCHEMAS = {
    EMBED: schemas.EmbeddingsRequest,
    CHAT: schemas.ChatRequest,
    SEARCH: schemas.SearchRequest,
    ASK: schemas.AskRequest,
}


def elements(value: Any) -> int:
    """Values and keys."""
    if isinstance(value, dict):
        return 1 + sum(1 + elements(one) for one in value.values())
    return 1 + sum(map(elements, value)) if isinstance(value, list) else 1


def made(rng: np.random.Generator, depth: int = 0) -> Any:
    kind = int(rng.integers(7 if depth < 5 else 4))
    if kind < 4:
        return [1.5, None, 'a"b\\,[{', "ü"][kind]
    count = int(rng.integers(5))
    if kind == 4:
        return {f'k"{i},': made(rng, depth + 1) for i in range(count)}
    return [made(rng, depth + 1) for _ in range(count)]


def test_what_is_counted_is_never_less_than_what_is_there(rng):
    for _ in range(300):
        value = made(rng)
        for indent in (None, 2):
            for ascii_only in (True, False):
                body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
                count = check_json(body, 10_000)
                assert elements(value) <= count <= 2 * elements(value) + 1, body


def test_bodies_of_more_than_may_be_are_refused_with_the_bound():
    for body, complaint in (
        (b"[" + b"1," * 99 + b"1]", "has 101 elements; expected at most 100"),
        (b'["a"' + b',"a"' * 100 + b"]", "more than 100 texts"),
        (b"[" * 33, f"is nested more than {DEPTH} deep"),
        (b" " * 5000, "more than 4224 bytes outside of texts"),
        (b"[" + b"9" * 65 + b"]", "a number of more than 64 digits"),
    ):
        with pytest.raises(ApiError, match=complaint) as met:
            check_json(body, 100)
        assert met.value.status == 400
    # What is in a text is none of it, however it is escaped or cut off.
    for text in (b"[" * 5000, b'\\"' * 5000, b"\\\\" * 500, b"1," * 5000):
        assert check_json(b'{"a": "' + text + b'"}', 100) == 4
        check_json(b'{"a": "' + text, 100)
        check_json(b'{"a": "' + text + b"\\", 100)


@pytest.mark.parametrize("size", [4 << 20, 20 << 20])
def test_swollen_bodies_are_refused_and_next_to_nothing_is_held_of_them(size):
    for attack in swollen(size):
        tracemalloc.start()
        try:
            with pytest.raises(ApiError, match="the body has"):
                check_json(attack.body, ELEMENTS)
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert held < 2 << 20, f"{attack.name}: {held} bytes"


def test_of_what_is_counted_as_few_a_value_is_read_to_about_its_first_error():
    for attack in swollen(16_000):
        check_json(attack.body, ELEMENTS)
        with pytest.raises(ValidationError) as met:
            SCHEMAS[attack.path].model_validate_json(attack.body)
        assert met.value.error_count() <= 8, attack.name


def test_good_requests_are_far_within_the_bounds():
    for path, body in GOOD.items():
        assert check_json(as_json(body), 100)
        SCHEMAS[path].model_validate(body)
    many = {"input": [{"text": "a " * 99, "image": "data:" + "a" * 999}] * Limits().inputs}
    assert check_json(json.dumps(many, indent=8).encode(), ELEMENTS) < ELEMENTS / 4


def test_large_bodies_are_looked_at_in_another_thread_than_the_loop():
    async def threads() -> list[bool]:
        here = threading.get_ident()
        return [await at_leisure(bytes(size), threading.get_ident) == here for size in (9, 99_999)]

    assert asyncio.run(threads()) == [True, False]


# slow


class Watch:
    """How long /healthz takes at most, and how much memory a server comes to hold."""

    def __init__(self, url: str, pid: int):
        self._http, self._pid, self._over = client(url), pid, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak is of what follows
        self.idle, self.slowest = self.held("VmRSS"), 0.0
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._http.close()
        self.peak = self.held("VmHWM")

    def held(self, what: str) -> float:
        """MB."""
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.perf_counter()
            assert self._http.get("/healthz").status_code == 200
            self.slowest = max(self.slowest, time.perf_counter() - began)
            time.sleep(0.01)


def timed(http: httpx.Client, attack) -> tuple[int, float]:
    began = time.perf_counter()
    got = http.post(attack.path, content=attack.body, headers=attack.headers)
    return got.status_code, time.perf_counter() - began


@pytest.mark.slow
def test_swollen_bodies_cost_no_second_no_memory_and_nobody_else(tiny_model_dir, compiled):
    with served(tiny_model_dir, compiled) as (server, url), client(url) as http:
        assert http.post("/v1/embeddings", json=GOOD[EMBED]).status_code == 200
        for size in (16_000, 190_000, 1 << 20, 4 << 20, 20_000_000):
            slowest = ("", 0.0)
            with Watch(url, server.pid) as watch:
                for attack in swollen(size):
                    status, seconds = timed(http, attack)
                    assert status in (400, 404), attack.name  # 404: there is no library
                    slowest = max(slowest, (attack.name, seconds), key=lambda one: one[1])
            print(
                f"{size} bytes: slowest {slowest[1]:.3f} s ({slowest[0]}), /healthz "
                f"{watch.slowest:.3f} s, {watch.peak - watch.idle:.0f} MB over {watch.idle:.0f}"
            )
            assert slowest[1] < 1, slowest
            assert watch.slowest < 0.1
            assert watch.peak - watch.idle < 200


@pytest.mark.slow
def test_two_thousand_bodies_made_at_random_leave_memory_flat(tiny_model_dir, compiled, rng):
    statuses, held, slowest = Counter[int](), [], ("", 0.0)
    with served(tiny_model_dir, compiled) as (server, url), client(url) as http:
        for number in range(2000):
            attack = mutated(rng, 1 << 20)
            status, seconds = timed(http, attack)
            assert status < 500, attack.name
            statuses[status] += 1
            if status >= 400:
                slowest = max(slowest, (attack.name, seconds), key=lambda one: one[1])
            if number % 200 == 199:
                watch = Watch(url, server.pid)
                held.append(round(watch.held("VmRSS")))
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.post("/v1/embeddings", json=GOOD[EMBED]).status_code == 200
    print(f"{dict(statuses)}, MB resident {held}, slowest refusal {slowest}")
    assert statuses[200] and statuses[400]
    assert slowest[1] < 1
    assert max(held[5:]) <= max(held[:5]) + 64
