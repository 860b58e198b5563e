"""Who is told what when a request fails: the caller's fault in words, all else by a number."""

from __future__ import annotations

import json
import logging

import httpx
import numpy as np
import pytest

import crem_jax
from crem_jax import library
from crem_jax.errors import CremError
from crem_jax.library.entry import StoreError
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.serve.engine.answer_batch import AnswerBatch
from crem_jax.serve.errors import ApiError, answer_for
from crem_jax.serve.service import Service
from tests.support.serving import client, data_uri, draw, serving

SECRET = "/srv/secret/lib"
SEARCH = ("/v1/search", {"query": "a tree"})
EMBED = ("/v1/embeddings", {"input": "a tree"})
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hm"}], "max_tokens": 4})
ASK = ("/v1/ask", {"ids": ["0.png"], "question": "hm", "max_tokens": 4})


def raising(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


def wrong_shapes(*_, **__):
    """The bug that is planted."""
    return np.zeros((2, 3)) @ np.zeros((2, 3))


@pytest.fixture(scope="module")
def service(tiny_model_dir, tmp_path_factory) -> Service:
    folder = tmp_path_factory.mktemp("errors")
    (folder / "photos").mkdir()
    draw(0).save(folder / "photos" / "0.png")
    model = crem_jax.load(tiny_model_dir)
    lib = library.create(folder / "lib", library_info(model, "tiny", "float32"))
    index(model, lib, IndexSource(str(folder / "photos")))
    return Service(model, "tiny", lib)


@pytest.fixture(scope="module")
def http(service):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'crem_jax[ui]'")
    with serving(service, page=True) as url, client(url) as opened:
        yield opened


@pytest.fixture
def logged(caplog):
    """Asserts that the log has one traceback, of this error and under this number."""
    caplog.set_level(logging.ERROR, "crem_jax.serve")

    def check(message: str, kind: type, words: str) -> None:
        (record,) = [one for one in caplog.records if one.name == "crem_jax.serve"]
        number = message.rpartition(" ")[2]
        assert len(number) == 16 and number in record.getMessage()
        assert record.exc_info[0] is kind and words in str(record.exc_info[1])
        caplog.clear()

    return check


def events(http: httpx.Client, path: str, body: dict) -> list[dict]:
    """The events of a stream, [DONE] left out."""
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize(
    "error, status",
    [
        (FileNotFoundError(2, "No such file", SECRET), 503),
        (StoreError(f"{SECRET} cannot be used: not found"), 503),
        (ValueError(f"matmul of {SECRET}"), 500),
        (KeyError(SECRET), 500),
        (RuntimeError(f"RESOURCE_EXHAUSTED {SECRET}"), 500),
    ],
)
def test_what_is_the_server_s_own_is_a_number_and_the_log_has_the_rest(
    http, service, monkeypatch, logged, error, status
):
    monkeypatch.setattr(service.library, "search", raising(error))
    answer = http.post(SEARCH[0], json=SEARCH[1])
    assert answer.status_code == status
    found = answer.json()["error"]
    assert found["type"] == "server_error" and SECRET not in answer.text
    assert answer.headers["X-Request-Id"] == found["message"].rpartition(" ")[2]
    logged(found["message"], type(error), SECRET)
    monkeypatch.undo()
    assert http.post(SEARCH[0], json=SEARCH[1]).status_code == 200


def test_what_is_the_caller_s_is_a_400_in_words(http, service, monkeypatch, caplog):
    monkeypatch.setattr(service.library, "search", raising(CremError("k = 9 is not stored")))
    answer = http.post(SEARCH[0], json=SEARCH[1])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "k = 9 is not stored"
    half = http.post("/v1/embeddings", content=rb'{"input": "half \ud83d of it"}', headers=JSON)
    assert half.status_code == 400 and not caplog.records


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("route", [SEARCH, EMBED, CHAT])
def test_a_bug_in_a_route_is_a_500(http, service, monkeypatch, logged, route):
    for name in ("search", "embed", "answer"):
        monkeypatch.setattr(service, name, wrong_shapes)
    answer = http.post(route[0], json=route[1])
    assert answer.status_code == 500 and "matmul" not in answer.text
    logged(answer.json()["error"]["message"], ValueError, "matmul")


@pytest.mark.parametrize(
    "route, name", [(EMBED, "chorus_states"), (CHAT, "compress"), (SEARCH, "chorus_states")]
)
def test_a_bug_in_the_engine_s_thread_is_a_500_and_the_thread_lives(
    http, service, monkeypatch, logged, route, name
):
    monkeypatch.setattr(service.runner, name, wrong_shapes)
    answer = http.post(route[0], json=route[1])
    assert answer.status_code == 500 and "matmul" not in answer.text
    logged(answer.json()["error"]["message"], ValueError, "matmul")
    monkeypatch.undo()
    assert http.post(route[0], json=route[1]).status_code == 200


@pytest.mark.parametrize("route", [CHAT, ASK])
@pytest.mark.parametrize(
    "error, what", [(ValueError("matmul"), "has failed"), (OSError("gone"), "cannot be answered")]
)
def test_what_fails_within_a_stream_is_its_last_event(
    http, monkeypatch, logged, route, error, what
):
    advance = AnswerBatch.advance

    def fail_later(batch):
        if any(batch._stream.counts):
            raise error
        return advance(batch)

    monkeypatch.setattr(AnswerBatch, "advance", fail_later)
    *_, last = events(http, *route)
    assert what in last["error"]["message"] and str(error) not in json.dumps(last)
    logged(last["error"]["message"], type(error), str(error))
    monkeypatch.setattr(AnswerBatch, "advance", raising(error))
    answer = http.post(route[0], json={**route[1], "stream": True})
    assert answer.status_code == (500 if isinstance(error, ValueError) else 503)


def test_a_bug_of_the_engine_itself_answers_all_and_is_seen_by_the_health(tiny_model_dir, logged):
    service = Service(crem_jax.load(tiny_model_dir), "tiny")
    with serving(service) as url, client(url) as http:
        service._engine._take_embeds = wrong_shapes
        answer = http.post(EMBED[0], json=EMBED[1])
        assert answer.status_code == 500
        logged(answer.json()["error"]["message"], ValueError, "matmul")
        assert http.get("/healthz").status_code == 503
        assert http.post(EMBED[0], json=EMBED[1]).status_code == 503


# the page


def run(http: httpx.Client, name: str, data: list, **more) -> str:
    """What the page is sent when it calls one of its functions."""
    functions = http.get("/config").json()["dependencies"]
    (number,) = [one["id"] for one in functions if one["api_name"] == name]
    session = {"session_hash": f"s{name}{len(data)}"}
    body = {"data": data, "fn_index": number, **session, **more}
    assert http.post("/gradio_api/queue/join", json=body).status_code == 200
    lines = []
    with http.stream("GET", "/gradio_api/queue/data", params=session) as response:
        for line in response.iter_lines():
            lines.append(line)
            if "process_completed" in line:
                return "\n".join(lines)
    raise AssertionError("the function did not end")


@pytest.mark.parametrize(
    "name, broken, data",
    [
        ("find", "search", ["a tree", "", 4, 5]),
        ("choose", "entry", []),
        ("answer", "ask", ["0.png", "hm", "compressed"]),
        ("answer", "entry", ["0.png", "hm", "native"]),
        ("describe", "answer", [data_uri(draw(1)), "hm", "native"]),
    ],
)
def test_the_page_says_that_it_failed_and_under_which_number(
    http, service, monkeypatch, logged, name, broken, data
):
    monkeypatch.setattr(service, broken, wrong_shapes)
    more = {"event_data": {"id": "0.png"}} if name == "choose" else {}
    seen = run(http, name, data, **more)
    assert "the request has failed" in seen and "matmul" not in seen
    number = seen.partition("says why under ")[2][:16]
    logged(f"under {number}", ValueError, "matmul")


# the mapping


def test_every_exception_has_its_answer():
    own = ApiError(418, "short and stout")
    assert answer_for(own) is own
    assert answer_for(CremError("no")).status == 400
    assert answer_for(TimeoutError(), deadline=3.0).status == 504
    assert answer_for(TimeoutError()).status == 503
    assert answer_for(TimeoutError(110, "Connection timed out"), deadline=3.0).status == 503
    assert answer_for(ValueError("shapes")).status == 500
