"""The server on a small untrained model, asked over HTTP as a user would."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import openai
import pytest

import crem_jax
from crem_jax import library
from crem_jax.data.records import Item
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.serve.engine.compiled_shapes import CompiledShapes
from crem_jax.serve.http.access import Access
from crem_jax.serve.limits import Limits
from crem_jax.serve.service import Service
from tests.support.cli_runner import crem
from tests.support.serving import client, data_uri, draw, serving

WHAT = "What is this?"
TOKEN = "a token of some length"
SIZES = [(30, 24), (30, 24), (30, 24), (50, 50)]


def load(directory) -> crem_jax.Model:
    return crem_jax.load(directory)


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    """Not the server's own: what it should say."""
    return load(tiny_model_dir)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, model):
    """Pictures, and a library of them that is opened anew by the server."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "photos").mkdir()
    for i, size in enumerate(SIZES):
        draw(i, size).save(folder / "photos" / f"{i}.png")
    place = folder / "lib"
    lib = library.create(place, library_info(model, "tiny", "float32"))
    index(model, lib, IndexSource(str(folder / "photos")))
    return place


@pytest.fixture(scope="module")
def url(tiny_model_dir, photos):
    service = Service(load(tiny_model_dir), "tiny", library.open(photos))
    with serving(service) as address:
        yield address


@pytest.fixture(scope="module")
def http(url):
    with client(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def ai(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def shown(image, text: str = WHAT) -> list[dict]:
    picture = {"type": "image_url", "image_url": {"url": data_uri(image)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


# OpenAI's client


def test_openai_embeddings_are_those_of_encode(ai, model):
    texts = ["a tree", "two cats and a much longer text about them"]
    for encoding in ("float", "base64"):
        got = ai.embeddings.create(model="tiny", input=texts, encoding_format=encoding)
        values = [one.embedding for one in got.data]
        if encoding == "base64":
            values = [np.frombuffer(base64.b64decode(value), "<f4") for value in values]
        np.testing.assert_allclose(values, model.encode(texts), atol=1e-5)
    default = ai.embeddings.create(model="tiny", input="a tree", dimensions=8)
    np.testing.assert_allclose(
        default.data[0].embedding, model.encode(["a tree"], dim=8)[0], atol=1e-5
    )
    short = ai.embeddings.create(model="tiny", input="a tree", extra_body={"k": 2})
    np.testing.assert_allclose(short.data[0].embedding, model.encode(["a tree"], 2)[0], atol=1e-5)
    assert got.usage.prompt_tokens == sum(len(model.runner.prepare(text).tokens) for text in texts)
    assert [one.id for one in ai.models.list().data] == ["tiny"]
    assert ai.models.retrieve("tiny").id == "tiny"


def test_pictures_are_embedded_by_messages_and_in_batches(http, model):
    image = draw(1)
    by_messages = http.post("/v1/embeddings", json={"messages": shown(image, "the tree")}).json()
    (expected,) = model.encode([{"image": image, "text": "the tree"}])
    np.testing.assert_allclose(by_messages["data"][0]["embedding"], expected, atol=1e-5)
    mixed = [{"image": data_uri(image, "WEBP")}, "words", {"image": data_uri(image), "text": "x"}]
    got = http.post("/v1/embeddings", json={"input": mixed}).json()["data"]
    items = [image, "words", {"image": image, "text": "x"}]
    expected = model.encode(items)
    np.testing.assert_allclose([one["embedding"] for one in got[1:]], expected[1:], atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"compressed": True, "k": 2}])
def test_openai_chat_about_a_picture_says_what_generate_says(ai, model, how):
    image = draw(2)
    asked = dict(model="tiny", messages=shown(image), max_tokens=6, extra_body=how)
    (expected,) = model.generate([{"image": image, "text": WHAT}], max_new_tokens=6, **how)
    got = ai.chat.completions.create(**asked)
    assert got.choices[0].message.content == expected
    assert got.choices[0].finish_reason == ("stop" if got.usage.completion_tokens < 6 else "length")
    pieces = list(ai.chat.completions.create(**asked, stream=True))
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == got.choices[0].finish_reason
    usage = {"include_usage": True}
    *_, last = ai.chat.completions.create(**asked, stream=True, stream_options=usage)
    assert last.usage == got.usage and last.choices == []


def test_a_conversation_is_read_to_its_end(ai, model):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    got = ai.chat.completions.create(model="tiny", messages=turns, max_tokens=6)
    row, question = model.runner.prompter.question_about(Item("three"), [("Be brief.\none", "two")])
    assert got.usage.prompt_tokens == len(row.tokens) + len(question)
    text = model.tokenizer.decode(question)
    assert text.index("Be brief.\none") < text.index("two") < text.index("three")


def test_what_is_drawn_with_a_seed_is_drawn_again(ai, model):
    image, how = draw(3), dict(temperature=2.0, top_p=0.9, seed=5)
    asked = dict(model="tiny", messages=shown(image), max_tokens=6, **how)
    item = {"image": image, "text": WHAT}
    (expected,) = model.generate([item], max_new_tokens=6, **how)
    answers = [ai.chat.completions.create(**asked).choices[0].message.content for _ in range(2)]
    assert answers == [expected, expected]


def test_openai_errors_are_raised_as_such(ai):
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        ai.embeddings.create(model="other", input="x")
    with pytest.raises(openai.BadRequestError, match=r"k = 5 is not in 1\.\.4"):
        ai.embeddings.create(model="tiny", input="x", extra_body={"k": 5})
    with pytest.raises(openai.BadRequestError, match="token ids are of another tokenizer"):
        ai.embeddings.create(model="tiny", input=[1, 2, 3])
    with pytest.raises(openai.BadRequestError, match="k = 2 needs compressed"):
        ai.chat.completions.create(model="tiny", messages=shown(draw(0)), extra_body={"k": 2})
    with pytest.raises(openai.BadRequestError, match="stop: is not supported"):
        ai.chat.completions.create(model="tiny", messages=shown(draw(0)), stop="x")


# the library


def test_search_finds_what_the_library_finds(http, model, photos):
    lib = library.open(photos)
    for query, item in (
        ({"query": "a tree"}, "a tree"),
        ({"image": data_uri(draw(2))}, draw(2)),
        ({"query": "a tree", "image": data_uri(draw(2))}, {"image": draw(2), "text": "a tree"}),
    ):
        got = http.post("/v1/search", json={**query, "top": 3, "k": 2}).json()["data"]
        hits = lib.find(model, item, 2, top=3)
        assert [one["id"] for one in got] == [hit.entry.id for hit in hits]
        np.testing.assert_allclose([o["score"] for o in got], [h.score for h in hits], atol=1e-4)
    where = {"query": "a tree", "where": "width > 30 AND id LIKE '%.png'", "thumbnails": True}
    (only,) = http.post("/v1/search", json=where).json()["data"]
    assert (only["id"], only["width"], only["height"]) == ("3.png", 50, 50)
    assert only["thumbnail"].startswith("data:image/")


def test_ask_answers_from_stored_memories(http, model, photos):
    lib, ids = library.open(photos), ["0.png", "3.png", "2.png"]
    asked = {"ids": ids, "question": WHAT, "k": 2, "max_tokens": 6}
    got = http.post("/v1/ask", json=asked).json()["data"]
    assert [one["id"] for one in got] == ids
    assert [one["answer"] for one in got] == lib.ask(model, ids, WHAT, 2, max_new_tokens=6)
    with http.stream("POST", "/v1/ask", json={**asked, "ids": ids[:1], "stream": True}) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    *pieces, last = map(json.loads, events[:-1])
    assert events[-1] == "[DONE]"
    assert "".join(piece["text"] for piece in [*pieces, last]) == got[0]["answer"]
    text = model.config.text
    slot = 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4  # keys, values; float32
    assert last["finish_reason"] in ("stop", "length") and last["memory_bytes"] == 2 * slot
    missing = http.post("/v1/ask", json={"ids": ["none"], "question": WHAT})
    assert missing.status_code == 404 and "has no 'none'" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    "where, complaint",
    [
        ("nonsense ===", "cannot be used"),
        ("repeat(text, 1000000000) = 'x'", "calls 'repeat'"),
        ("\"repeat\" (text, 9) = 'x'", "calls"),
        ("(" * 40 + "true" + ")" * 40, "40 levels of nesting; expected at most 16"),
        ("not " * 40 + "true", "39 levels of nesting; expected at most 16"),
        ("width > 1 OR " * 400 + "true", "expected at most 2000"),
        ("text = '\0'", "NUL"),
        ("true; DROP TABLE entries", "';'"),
        ("length(repeat/**/('a', 100000000)) = 1", "'/*'"),
        ("length(repeat--\n('a', 100000000)) = 1", "'--'"),
        ("text = $$x$$", "'$'"),
    ],
)
def test_conditions_that_could_harm_are_refused(http, where, complaint):
    got = http.post("/v1/search", json={"query": "x", "where": where})
    assert got.status_code == 400 and complaint in got.json()["error"]["message"]


def test_conditions_as_long_and_deep_as_may_be_are_answered(http):
    for where in ("width>1 OR " * 180 + "true", "(" * 16 + "true" + ")" * 16, "- " * 15 + "1 > 0"):
        assert http.post("/v1/search", json={"query": "x", "where": where}).status_code == 200
    lower = "lower(text) = '' AND NOT (id IN ('none(', 'of''these'))"
    assert len(http.post("/v1/search", json={"query": "x", "where": lower}).json()["data"]) == 4


# care


def test_health_metrics_and_the_description(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    http.post("/v1/embeddings", json={"input": "x"})
    text = http.get("/metrics").text
    assert 'crem_requests_total{route="/v1/embeddings",status="200"}' in text
    assert 'crem_batch_rows_bucket{kind="embeddings",le="1.0"}' in text
    assert "process_resident_memory_bytes" in text
    described = http.get("/openapi.json").json()["paths"]["/v1/ask"]["post"]["requestBody"]
    schema = described["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"ids", "question"}


def test_requests_at_one_time_are_batched_and_each_gets_its_own_answer(url, http, model):
    texts = [f"number {i}" for i in range(8)]
    expected = model.encode(texts)
    images = [draw(i) for i in range(3)]
    asked = [{"image": image, "text": WHAT} for image in images]
    said = model.generate(asked, max_new_tokens=6)
    got: dict = {}

    def embed(i: int) -> None:
        with client(url) as own:
            body = own.post("/v1/embeddings", json={"input": texts[i]}).json()
        got[i] = body["data"][0]["embedding"]

    def chat(i: int) -> None:
        body = {"messages": shown(images[i]), "max_tokens": 6}
        with client(url) as own:
            got["chat", i] = own.post("/v1/chat/completions", json=body).json()["choices"][0]

    calls = [(embed, i) for i in range(8)] + [(chat, i) for i in range(3)]
    threads = [threading.Thread(target=call, args=(i,)) for call, i in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([got[i] for i in range(8)], expected, atol=1e-5)
    assert [got["chat", i]["message"]["content"] for i in range(3)] == said


def test_more_than_it_can_hold_is_refused_and_what_is_late_ends(tiny_model_dir, model):
    service = Service(load(tiny_model_dir), "tiny", limits=Limits(requests=1, deadline=1.0))
    with serving(service) as url, client(url) as http:
        with service.admission.admitted():
            full = http.post("/v1/embeddings", json={"input": "x"})
            assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
            assert http.get("/healthz").status_code == 200
        held, runs = threading.Event(), service.runner.chorus_states
        service.runner.chorus_states = lambda context: (held.wait(20), runs(context))[1]
        late = http.post("/v1/embeddings", json={"input": "x"})
        assert late.status_code == 504 and "within 1 seconds" in late.json()["error"]["message"]
        held.set()
        assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_failure_of_the_model_is_a_500_and_the_next_request_is_answered(tiny_model_dir):
    service = Service(load(tiny_model_dir), "tiny")
    with serving(service) as url, client(url) as http:
        runs = service.runner.chorus_states

        def fail(context):
            service.runner.chorus_states = runs
            raise RuntimeError("out of memory")

        service.runner.chorus_states = fail
        failed = http.post("/v1/embeddings", json={"input": "x"})
        assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
        assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 200
        assert http.post("/v1/search", json={"query": "x"}).json()["error"]["code"] == "no_library"


def test_a_service_reads_by_a_prompter_of_its_own_and_leaves_the_callers_alone(tiny_model_dir):
    model = load(tiny_model_dir)
    prompter = model.runner.prompter
    service = Service(model, "tiny")
    assert model.runner.prompter is prompter and prompter.known_texts
    assert service._reader._prompter is not prompter and not service._reader._prompter.known_texts
    service.close()


def test_a_token_opens_everything_but_the_health(tiny_model_dir):
    service = Service(load(tiny_model_dir), "tiny")
    with serving(service, Access(TOKEN)) as url, client(url) as http:
        assert http.get("/healthz").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            refused = http.get(path)
            assert refused.status_code == 401 and "Bearer" in refused.headers["www-authenticate"]
            assert http.get(path, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
            assert http.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
            assert http.get(path, auth=("anyone", TOKEN)).status_code == 200
        named = {"Authorization": f"Bearer {TOKEN}", "Host": "crem.example.com"}
        assert http.get("/v1/models", headers=named).status_code == 200


def test_other_names_and_other_sites_are_refused_without_a_token(http):
    assert http.get("/v1/models", headers={"Host": "evil.example.com"}).status_code == 403
    assert http.get("/v1/models", headers={"Host": "localhost:9"}).status_code == 200
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert http.post("/v1/embeddings", json={"input": "x"}, headers=foreign).status_code == 403
    assert http.get("/v1/models", headers=foreign).status_code == 403
    link = {**foreign, "Sec-Fetch-Mode": "navigate"}
    assert http.get("/v1/models", headers=link).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert http.post("/v1/embeddings", json={"input": "x"}, headers=own).status_code == 200


def test_varied_requests_compile_few_shapes(rng):
    shapes, asked = CompiledShapes(), rng.integers(1, 1000, (2000, 2)).tolist()
    got = [shapes.fit("kind", *wanted) for wanted in asked]
    for wanted, shape in zip(asked, got, strict=True):
        assert all(w <= s <= 2 * w for w, s in zip(wanted, shape, strict=True))
    assert len(set(got)) < 250
    assert shapes.fit("kind", *got[0]) == got[0] and shapes.fit("other", 3, 4) == (3, 4)


# crem serve


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--host", "0.0.0.0"], "can be reached from elsewhere, which needs a token"),
        (["--host", "::"], "can be reached from elsewhere, which needs a token"),
        (["--token_file", "TOKEN"], "has 5 characters; expected at least 16"),
        (["--allow_url", "example.com"], "'example.com' is no URL prefix"),
        (["--library", "none.crem", "--port", "0"], "none.crem is no library"),
        (["--port", "70000"], "'70000' is not a port"),
        (["--deadline", "0"], "'0' is not a number above 0"),
        (["--host", "no.such.name.test", "--token_file", "LONG"], "cannot listen on no.such.name"),
    ],
)
def test_wrong_usage_is_one_line(capsys, tmp_path, tiny_model_dir, argv, complaint):
    (tmp_path / "TOKEN").write_text("short")
    (tmp_path / "LONG").write_text(TOKEN)
    argv = [tmp_path / word if word in ("TOKEN", "LONG") else word for word in argv]
    got = crem(capsys, "serve", "--model", tiny_model_dir, "--no_page", *argv)
    assert got.code == 2 and got.out == "" and got.err.count("\n") == 1 and complaint in got.err


def test_sigterm_lets_a_stream_end_and_the_process_with_it(tiny_model_dir, compiled):
    command = [sys.executable, "-m", "crem_jax", "serve", "--model", tiny_model_dir]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    server = subprocess.Popen(
        [*command, "--port", "0", "--no_page", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = json.loads(server.stdout.readline())["url"]
        ask = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400, "stream": True}
        with client(url) as http, http.stream("POST", "/v1/chat/completions", json=ask) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            server.send_signal(signal.SIGTERM)
            *_, last = [first, *filter(None, lines)]
        assert last == "data: [DONE]"
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0 and errors == ""
    finally:
        server.kill()
