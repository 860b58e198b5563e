"""Decoders that hang or crash cost their one picture; words and the server's end do not wait."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import crem_jax
from crem_jax.serve.limits import Limits
from crem_jax.serve.service import Service
from tests.support import decoder_bombs as bombs
from tests.support.abuse_pictures import as_uri
from tests.support.serving import client, data_uri, draw, served, serving

HANG = 120.0
"""Seconds after which a test has hung."""
SECONDS = 4.0  # for a picture
SLOW = 10**10  # pixels: enough for a bomb that is let through


@pytest.fixture(scope="module")
def service(tiny_model_dir):
    limits = Limits(pixels=SLOW, picture_seconds=SECONDS)
    return Service(crem_jax.load(tiny_model_dir), "tiny", limits=limits)


@pytest.fixture(scope="module")
def http(service):
    with serving(service) as url, client(url) as opened:
        assert embed(opened, "words").status_code == 200  # compiles
        assert embed(opened, picture(0)).status_code == 200
        yield opened


def embed(http: httpx.Client, item: str | dict) -> httpx.Response:
    return http.post("/v1/embeddings", json={"input": [item]}, timeout=HANG)


def picture(seed: int) -> dict:
    return {"image": data_uri(draw(seed))}


def until(true) -> None:
    end = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def decoders(server: int) -> list[int]:
    """The processes that a server's process decodes in."""
    found = []
    for tasks in Path(f"/proc/{server}/task").glob("*/children"):
        for child in tasks.read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


@contextlib.contextmanager
def held(pids: list[int]) -> Iterator[None]:
    """Processes that do not come back from what they do."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def asked(*calls) -> Iterator[list[httpx.Response]]:
    """Requests under way; their answers are there at the end."""
    got: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda call=call: got.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    yield got
    for thread in threads:
        thread.join(HANG)
    assert len(got) == len(calls)


@pytest.mark.parametrize("name", sorted(bombs.BOMBS))
def test_a_bomb_is_refused_for_its_work_and_no_process_is_lost(http, name):
    count = {"comment": 10_000, "fill": 10_000, "icons": 60_000}.get(name, 140_000)
    got = embed(http, {"image": as_uri(bombs.BOMBS[name](count))})
    assert got.status_code == 400
    error = got.json()["error"]
    assert (error["param"], error["code"]) == ("input[0].image", "invalid_image")
    assert "is too much work to decode, " in error["message"]
    assert "crem_pictures_lost_total{" not in http.get("/metrics").text


def test_words_are_answered_while_decoders_hang_and_what_hangs_is_ended(http, service):
    before = decoders(os.getpid())
    with held(before):
        hanging = [lambda i=i: embed(http, picture(i)) for i in range(4)]
        with asked(*hanging) as got:
            for _ in range(3):
                assert embed(http, "words").status_code == 200
            assert http.get("/healthz").json() == {"status": "ok"}
            assert not got
    # Two hung; the others found processes that had taken their place.
    assert sorted(answer.status_code for answer in got) == [200] * (4 - len(before)) + [400] * len(
        before
    )
    (said,) = {a.json()["error"]["message"] for a in got if a.status_code == 400}
    assert said == f"input[0].image: cannot be decoded: took more than {SECONDS:g} seconds"
    lost = f'crem_pictures_lost_total{{reason="timeout"}} {float(len(before))}'
    assert lost in http.get("/metrics").text
    assert not set(before) & set(decoders(os.getpid()))
    assert embed(http, picture(1)).status_code == 200


def test_a_decoder_that_crashes_costs_its_picture_and_is_replaced(http):
    before = decoders(os.getpid())
    with held(before), asked(lambda: embed(http, picture(2))) as got:
        for pid in before:
            os.kill(pid, signal.SIGSEGV)  # when it goes on
            os.kill(pid, signal.SIGCONT)
    assert got[0].status_code in (200, 400)  # 200: it had ended before it was asked
    if got[0].status_code == 400:
        assert "cannot be decoded: its process ended with code -11" in got[0].text
        assert 'crem_pictures_lost_total{reason="crash"} 1.0' in http.get("/metrics").text
    assert embed(http, picture(2)).status_code == 200


def test_health_tells_when_no_process_can_decode_and_when_one_can_again(http, monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    for pid in decoders(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    until(lambda: http.get("/healthz").status_code == 503)
    assert http.get("/healthz").json() == {"status": "stuck"}
    assert embed(http, picture(3)).status_code == 503
    assert embed(http, "words").status_code == 200
    monkeypatch.undo()
    until(lambda: http.get("/healthz").json() == {"status": "ok"})
    assert embed(http, picture(3)).status_code == 200


def test_a_real_bomb_that_its_bounds_let_through_is_ended_in_time(http):
    slow = as_uri(bombs.scans(900, (9000, 9000)), "jpeg")
    got = embed(http, {"image": slow})
    assert got.status_code == 400
    assert "cannot be decoded: took more than" in got.json()["error"]["message"]
    assert embed(http, picture(4)).status_code == 200


def test_sigterm_ends_the_process_while_decoders_hang(tiny_model_dir, compiled):
    bounds = ("--deadline", "3", "--max_picture_seconds", "600")
    with served(tiny_model_dir, compiled, *bounds) as (server, url), client(url) as http:
        until(lambda: decoders(server.pid))
        hanging = decoders(server.pid)
        calls = [lambda i=i: embed(http, picture(i)) for i in range(4)]
        with held(hanging), asked(*calls) as got:
            until(lambda: "crem_requests_inside 4.0" in http.get("/metrics").text)
            server.send_signal(signal.SIGTERM)
            assert server.wait(HANG) == 0
        assert {answer.status_code for answer in got} == {504}
        assert not any(Path(f"/proc/{pid}").exists() for pid in hanging)


NEVER_DRAINED = """
import signal, sys, types
from crem_jax.serve.http.server import make_server
from crem_jax.serve.limits import Limits
server = make_server(None, types.SimpleNamespace(limits=Limits()))
server.drain_seconds = float(sys.argv[1])
signal.signal(signal.SIGTERM, server.handle_exit)
signal.raise_signal(signal.SIGTERM)
print("draining", flush=True)
while True:
    pass
"""


@pytest.mark.parametrize("signals, code", [(1, -signal.SIGALRM), (2, 128 + signal.SIGTERM)])
def test_a_drain_that_does_not_end_is_cut_off_and_a_second_signal_ends_it_at_once(signals, code):
    command = [sys.executable, "-c", NEVER_DRAINED, "0.1" if signals == 1 else "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "draining\n"
        if signals == 2:
            server.send_signal(signal.SIGTERM)
        assert server.wait(HANG) == code


# slow


@pytest.mark.slow
def test_two_bombs_that_outlive_their_deadline_hold_neither_words_nor_the_end(
    tiny_model_dir, compiled
):
    """Twenty thousand scans are refused at once; a thousand of 169 million pixels are let through
    by an operator who allows such pictures, and take half a minute or more."""
    bomb = as_uri(bombs.scans(990, (13_000, 13_000)), "jpeg")
    whole = as_uri(bombs.scans(20_000, (5600, 5600)), "jpeg")
    bounds = ("--max_pixels", str(SLOW), "--max_picture_seconds", "600", "--deadline", "20")
    with served(tiny_model_dir, compiled, *bounds) as (server, url), client(url) as http:
        assert embed(http, "words").status_code == 200
        assert "1001 scans; expected at most 1000" in embed(http, {"image": whole}).text
        with asked(*[lambda: embed(http, {"image": bomb})] * 4) as got:
            until(lambda: "crem_requests_inside 4.0" in http.get("/metrics").text)
            for _ in range(10):
                assert embed(http, "words").status_code == 200
                assert http.get("/healthz", timeout=5).status_code == 200
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(HANG) == 0
            assert time.monotonic() - began < 35
        assert {answer.status_code for answer in got} == {504}


@pytest.mark.slow
def test_hostile_pictures_leave_memory_flat_and_the_server_well(http, rng):
    def resident() -> int:
        pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in family()]
        return sum(map(int, pages)) * os.sysconf("SC_PAGESIZE") >> 20

    def family() -> list[int]:
        return [os.getpid(), *decoders(os.getpid())]

    held, statuses = [], set()
    for number in range(1200):
        got = embed(http, {"image": as_uri(bombs.hostile(rng))})
        statuses.add(got.status_code)
        assert got.status_code in (200, 400), got.text
        if number % 100 == 99:
            assert http.get("/healthz", timeout=5).json() == {"status": "ok"}
            assert embed(http, "words").status_code == 200
            held.append(resident())
    print("MB resident:", held)
    assert statuses == {200, 400}
    assert max(held[6:]) <= max(held[:6]) + 64
