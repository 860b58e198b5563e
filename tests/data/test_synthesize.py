"""`crem synthesize`: pairs by a model or an endpoint, filtered, and never twice."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crem_jax.data.images.decode import PictureError
from crem_jax.data.records import Item, Record
from crem_jax.data.sources.formats.jsonl import JsonlRecords
from crem_jax.data.tools.qa_pairs import Task, filtered, parse_pairs
from crem_jax.data.tools.synthesize import synthesize
from crem_jax.data.tools.teachers import EndpointTeacher, TeacherError
from tests.support.cli_runner import crem

KEY = "sk-very-secret"


class Endpoint(http.server.ThreadingHTTPServer):
    """A loopback server that speaks /chat/completions; `script` decides each answer.

    An answer is a text, a (status, body, headers) triple, or None, which hangs up.
    """

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.asked, self.lock = script, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append((self.path, self.headers, body))
        answer = self.server.script(number, body)
        if answer is None:
            self.connection.close()
            return
        status, data, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        if isinstance(data, str) and status == 200:
            choices = [{"message": {"role": "assistant", "content": data}}]
            data = json.dumps({"choices": choices})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(script) -> Endpoint:
        server = Endpoint(script)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


GOOD = "Q: What colour is it?\nA: Blue.\nQ: What is beside it?\nA: A tall tree with two birds."


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Five records with pictures, of one each and one of two."""
    lines = []
    for i in range(5):
        Image.new("RGB", (40 + i, 30), (i, 90, 200)).save(tmp_path / f"{i}.png")
        lines.append({"id": f"r{i}", "image": f"{i}.png", "text": f"caption number {i}"})
        lines[-1]["metadata"] = {"price": i}
    lines[4] = {"id": "r4", "query": {"images": ["3.png", "4.png"], "text": "Compare."}}
    lines[4]["positives"] = ["caption number 4"]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def records(path: Path) -> list[Record]:
    source = JsonlRecords(path)
    return [source.read(i) for i in range(len(source))]


def test_pairs_go_beside_what_the_record_had_and_the_pipeline_reads_them(serve, pairs, capsys):
    server = serve(lambda number, body: GOOD)
    out = pairs.parent / "made" / "qa.jsonl"
    argv = ["synthesize", pairs, out, "--endpoint", server.url, "--model", "teacher", "--json"]
    done = crem(capsys, *argv)
    assert done.json["written"] == 5 and done.json["pairs"] == 10 and not done.json["dropped"]
    before, after = records(pairs), records(out)
    for old, new in zip(before, after, strict=True):
        assert new.id == old.id and new.query.text == old.query.text
        assert new.metadata == old.metadata
        assert [item.text for item in new.positives] == [item.text for item in old.positives]
        assert [
            Path(a).samefile(b) for a, b in zip(new.query.images, old.query.images, strict=True)
        ]
        assert new.turns == (
            ("What colour is it?", "Blue."),
            ("What is beside it?", "A tall tree with two birds."),
        )
    again = crem(capsys, *argv)
    assert again.json["before"] == 5 and again.json["written"] == 0
    assert len(server.asked) == 5


def test_the_endpoint_gets_the_pictures_the_caption_and_the_key(serve, pairs, capsys, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server = serve(lambda number, body: GOOD)
    argv = ["synthesize", pairs, pairs.parent / "qa.jsonl", "--endpoint", server.url + "/"]
    done = crem(capsys, *argv, "--model", "teacher", "--api_key_env", "TEACHER_KEY", "--pairs", "2")
    assert done.code == 0 and KEY not in done.out + done.err
    path, headers, body = next(a for a in server.asked if "caption number 4" in json.dumps(a[2]))
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "teacher" and body["temperature"] == 0
    *images, text = body["messages"][0]["content"]
    assert "Write 2 different questions" in text["text"] and "Compare." in text["text"]
    sizes = []
    for image in images:
        head, data = image["image_url"]["url"].split(",")
        assert head == "data:image/jpeg;base64"
        sizes.append(Image.open(io.BytesIO(base64.b64decode(data))).size)
    assert sizes == [(43, 30), (44, 30)]


def endpoint(server: Endpoint, **options) -> tuple[EndpointTeacher, list[float]]:
    waits: list[float] = []
    options = {"parallel": 1, "timeout": 5, "sleep": waits.append, **options}
    return EndpointTeacher(server.url, "teacher", **options), waits


def test_what_may_pass_is_tried_again_after_longer_and_longer(serve):
    answers = [None, (503, "busy", {}), (429, "slow down", {"Retry-After": "17"}), (200, "{", {})]

    def script(number, body):
        return answers[number] if number < 3 else ("x" if number == 4 else (502, "", {}))

    server = serve(script)
    teacher, waits = endpoint(server)
    assert teacher([Item("hello")]) == ["x"]
    assert len(server.asked) == 5
    assert 0.5 <= waits[0] <= 1 and 1 <= waits[1] <= 2 and waits[2] == 17 and 4 <= waits[3] <= 8


def test_an_account_at_openai_that_the_environment_names_is_not_sent_elsewhere(serve, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    server = serve(lambda number, body: "x")
    assert endpoint(server)[0]([Item("hello")]) == ["x"]
    assert endpoint(server, key=KEY)[0]([Item("hello")]) == ["x"]
    keys = [headers.get("Authorization") for _, headers, _ in server.asked]
    assert keys == [None, f"Bearer {KEY}"] and all(
        "private" not in str(headers) for _, headers, _ in server.asked
    )


@pytest.mark.parametrize(
    ("answer", "attempts", "words"),
    [
        ((401, f"bad key {KEY}", {}), 1, "answers 401: bad key …"),
        ((404, "no such model", {}), 1, "answers 404: no such model"),
        ((302, "", {"Location": "http://127.0.0.1:9/"}), 1, "answers 302"),
        ((200, '{"choices": []}', {}), 1, "without a text"),
        ((500, "oh no", {}), 3, r"answers 500: oh no \(after 3 attempts\)"),
        (None, 3, r"after 3 attempts"),
    ],
    ids=["401", "404", "redirect", "no choices", "500", "hangs up"],
)
def test_a_failure_is_told_in_the_endpoints_words_without_the_key(serve, answer, attempts, words):
    if isinstance(answer, tuple) and answer[0] == 200:  # a body that is no chat completion
        server = serve(lambda number, body: (201, answer[1], {}))
    else:
        server = serve(lambda number, body: answer)
    teacher, _ = endpoint(server, key=KEY, retries=2)
    (error,) = teacher([Item("hello")])
    assert isinstance(error, TeacherError) and len(server.asked) == attempts
    with pytest.raises(TeacherError, match=words):
        raise error
    assert KEY not in str(error)


class Scripted:
    """A teacher by the book; after `dies_after` batches it is killed."""

    def __init__(self, answer=lambda request: GOOD, dies_after: int | None = None):
        self.answer, self.left, self.asked = answer, dies_after, []

    def __call__(self, requests):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.asked += [request.text for request in requests]
        return [self.answer(request) for request in requests]


def test_killed_and_run_again_it_asks_and_writes_nothing_twice(pairs):
    source, out = JsonlRecords(pairs), pairs.parent / "qa.jsonl"
    synthesize(source, whole := pairs.parent / "whole.jsonl", Scripted(), Task(), batch=2)
    for dies_after in (1, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            synthesize(source, out, Scripted(dies_after=dies_after), Task(), batch=2)
        with out.open("a") as file:
            file.write('{"id": "r3", "query"')  # a kill in the middle of a write
    last = Scripted()
    report = synthesize(source, out, last, Task(), batch=2)
    assert report.before == 4 and report.written == 1 and len(last.asked) == 1
    assert out.read_text() == whole.read_text()


def test_what_the_teacher_fails_on_is_left_for_the_next_run(pairs):
    out = pairs.parent / "qa.jsonl"
    shaky = Scripted(lambda r: TeacherError("busy") if "number 1" in r.text else GOOD)
    report = synthesize(JsonlRecords(pairs), out, shaky, Task())
    assert (report.written, report.failed) == (4, 1) and "'r1': busy" in report.last_error
    assert synthesize(JsonlRecords(pairs), out, Scripted(), Task()).written == 1
    assert sorted(record.id for record in records(out)) == [f"r{i}" for i in range(5)]
    with pytest.raises(ValueError, match=r"failed on a whole batch, last on record 'r4': busy"):
        synthesize(
            JsonlRecords(pairs),
            out.with_name("b.jsonl"),
            Scripted(lambda r: TeacherError("busy")),
            Task(),
        )


def test_pictures_that_cannot_be_read_are_counted_and_never_end_the_run(pairs):
    out = pairs.parent / "qa.jsonl"
    blind = Scripted(lambda r: PictureError("a.png: cut off") if "number 3" not in r.text else GOOD)
    report = synthesize(JsonlRecords(pairs), out, blind, Task(), batch=1)
    assert (report.written, report.unreadable, report.failed) == (1, 4, 0)
    assert synthesize(JsonlRecords(pairs), out, Scripted(), Task(), batch=2).written == 4


def test_a_record_without_a_good_pair_is_rejected_once_with_the_reasons(pairs):
    out = pairs.parent / "qa.jsonl"
    mute = Scripted(lambda r: "I'd rather not." if "number 2" in r.text else GOOD)
    report = synthesize(JsonlRecords(pairs), out, mute, Task())
    assert (report.written, report.rejected) == (4, 1)
    (line,) = [json.loads(text) for text in (pairs.parent / "qa.rejected.jsonl").open()]
    assert line["id"] == "r2" and line["reasons"] == ["no pairs in the answer"]
    assert synthesize(JsonlRecords(pairs), out, last := Scripted(), Task()).written == 0
    assert not last.asked


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What is it?", "A red bus.", ""),
        ("What is it?", "...", "empty"),
        ("", "A bus.", "empty"),
        ("What is it?", "a bus " * 400, "too long"),
        ("Why " * 100, "Because.", "too long"),
        ("What is it?", "I'm sorry, I can't see any picture.", "refusal"),
        ("What is it?", "As an AI language model, I have no eyes.", "refusal"),
        ("What does the caption say?", "A bus.", "leaks the prompt"),
        ("What is it?", "Ask only what the picture itself shows or says.", "leaks the prompt"),
        ("Is the red bus late?", "Red bus", "gives itself away"),
        ("Which is it, yes or no?", "Yes", ""),
        ("what is HERE", "A cat.", "duplicate"),
    ],
)
def test_a_pair_is_dropped_for_its_reason(question, answer, reason):
    (request,) = Task().requests(Record("a", Item(images=(np.zeros((4, 4, 3), np.uint8),))))
    first = ("What is here?", "A dog.")
    kept, reasons = filtered([first, (question, answer)], request.text)
    assert reasons == ([reason] if reason else [])
    assert kept == [first, *([] if reason else [(question, answer)])]


@pytest.mark.parametrize(
    "text",
    [
        "Q: Who?\nA: Ann.\nQ: Where?\nA: At home,\nin bed.",
        "1. Q: Who?\n   A: Ann.\n\n2. Q: Where?\n   A: At home,\nin bed.\n",
        "Sure!\n**Question 1:** Who?\n**Answer 1:** Ann.\n\n"
        "**Question 2:** Where?\n**Answer 2:** At home,\nin bed.",
        "- q. Who?\n- a. Ann.\n- q. Where?\n- a. At home,\nin bed.",
    ],
)
def test_pairs_are_read_however_the_teacher_sets_them(text):
    assert parse_pairs(text) == [("Who?", "Ann."), ("Where?", "At home,\nin bed.")]


def test_pictures_that_are_no_files_are_saved_beside_the_jsonl(tmp_path):
    class Drawn:
        def __len__(self):
            return 3

        def record(self, index, rng=None):
            pixels = np.full((8, 8, 3), index // 2, np.uint8)
            return Record(f"d{index}", Item(images=(pixels,)), (Item("a picture"),))

    synthesize(Drawn(), tmp_path / "qa.jsonl", Scripted(), Task())
    made = records(tmp_path / "qa.jsonl")
    values = [np.asarray(Image.open(record.query.images[0]))[0, 0, 0] for record in made]
    assert values == [0, 0, 1] and len(list((tmp_path / "qa_pictures").iterdir())) == 2


def test_a_model_answers_given_questions(pairs, capsys, tiny_model_dir):
    questions = pairs.parent / "questions.txt"
    questions.write_text("What is it?\n\nWhat is it?\n")
    out = pairs.parent / "qa.jsonl"
    head = pairs.with_name("head.jsonl")
    head.write_text("".join(pairs.open().readlines()[:2]))
    argv = ["synthesize", head, out, "--teacher", tiny_model_dir, "--questions", questions]
    done = crem(capsys, *argv, "--max_new_tokens", "6", "--json")
    assert done.code == 0 and done.json["written"] + done.json["rejected"] == 2
    assert done.json["pairs"] + sum(done.json["dropped"].values()) == 2
    lines = [json.loads(line) for line in out.open()]
    assert [turn["question"] for line in lines for turn in line["turns"]] == ["What is it?"] * len(
        lines
    )


def test_wrong_arguments_and_files_are_refused_in_a_sentence(pairs, capsys, tmp_path):
    out = tmp_path / "qa.jsonl"
    bare = crem(capsys, "synthesize", pairs, out)
    assert bare.code == 2 and "--teacher --endpoint is required" in bare.err
    alone = crem(capsys, "synthesize", pairs, out, "--endpoint", "http://127.0.0.1:1/v1")
    assert alone.code == 2 and "--endpoint and --model NAME belong together" in alone.err
    url = ["--endpoint", "http://127.0.0.1:1/v1", "--model", "m"]
    unset = crem(capsys, "synthesize", pairs, out, *url, "--api_key_env", "NOT_SET_AT_ALL")
    assert unset.code == 2 and "NOT_SET_AT_ALL is not set" in unset.err
    scheme = crem(capsys, "synthesize", pairs, out, "--endpoint", "file:///etc", "--model", "m")
    assert scheme.code == 2 and "is no http:// or https:// address" in scheme.err
    out.write_text('{"name": 3}\n')
    other = crem(capsys, "synthesize", pairs, out, *url)
    assert other.code == 2 and "qa.jsonl line 1 is no record with an id" in other.err
