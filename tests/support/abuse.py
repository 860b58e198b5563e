"""Malformed requests of every kind that a server on the internet meets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import numpy as np

from tests.support.abuse_bodies import swollen
from tests.support.abuse_pictures import (
    as_uri,
    bombs,
    damaged,
    not_base64,
    not_data,
    picture,
    remote,
)
from tests.support.abuse_requests import (
    ASK,
    BODY_BYTES,
    CHAT,
    EMBED,
    JSON,
    ROUTES,
    SEARCH,
    Attack,
    as_json,
)
from tests.support.serving import data_uri, draw


def attacks(rng: np.random.Generator, count: int) -> list[Attack]:
    """`count` of them: one of every kind that is written down below, and noise."""
    kinds: list[Callable[[np.random.Generator], Iterator[Attack]]] = [
        *(bombs, damaged, not_base64, not_data, remote, traversal, huge, deep, unicode, cut),
        *(
            lambda _: swollen(BODY_BYTES - 99),
            lambda _: swollen(30_000),
            values,
            conversations,
            conditions,
            ids,
            types,
            methods,
            heads,
        ),
    ]
    found = [attack for kind in kinds for attack in kind(rng)]
    assert len(found) <= count
    return found + [noise(rng) for _ in range(count - len(found))]


def noise(rng: np.random.Generator) -> Attack:
    """Random bytes as a body, as a picture, or as the head of a request."""
    data = rng.bytes(int(rng.integers(1, 3000)))
    where = rng.integers(3)
    if where == 0:
        return Attack("noise", ROUTES[rng.integers(4)], data)
    if where == 1:
        return Attack("noise picture", *picture(as_uri(data), rng))
    return Attack("noise head", raw=b"\x7f" + data + b"\r\n\r\n")


def traversal(rng) -> Iterator[Attack]:
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/../../../etc/passwd",
        "/v1//..",
        "/assets/../../../../etc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/v1/models/%2fetc%2fpasswd",
        "/..%5c..%5cwindows",
        "/file=/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/etc/passwd",
        "/v1/models/%00",
        "/proxy=http://127.0.0.1",
        "/.git/config",
        "/.env",
        "/v1/models/..;/x",
        "/./x",
    ):
        line = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        yield Attack(f"path {path}", raw=line.encode())


def huge(rng) -> Iterator[Attack]:
    for size in (BODY_BYTES + 1, 3 * BODY_BYTES):
        for fill in (b'{"input": "' + b"a" * size, b"[" + b"1," * (size // 2), b" " * size):
            yield Attack(f"{size} bytes", ROUTES[int(rng.integers(4))], fill)
    yield Attack("long text", body=as_json({"input": "word " * 100_000}))
    yield Attack("many inputs", body=as_json({"input": ["a"] * 100_000}))
    yield Attack("empty inputs", body=as_json({"input": [""] * 9}))
    yield Attack("long name", body=as_json({"input": "a", "model": "x" * 500_000}))
    many = [{"role": "user", "content": "a"}] * 20_000
    yield Attack("many messages", CHAT, as_json({"messages": many}))
    parts = [{"type": "image_url", "image_url": {"url": data_uri(draw(0, (8, 8)))}}] * 1000
    yield Attack("many pictures", CHAT, as_json({"messages": [{"role": "user", "content": parts}]}))
    yield Attack("many ids", ASK, as_json({"ids": ["a"] * 9999, "question": "?"}))
    yield Attack("many hits", SEARCH, as_json({"query": "a", "top": 10**9}))
    yield Attack("many digits", body=b'{"input": "a", "k": ' + b"9" * 100_000 + b"}")


def bodies(rng) -> Iterator[Attack]:
    """Of more elements than are built, and of as many as just are."""
    yield from swollen(BODY_BYTES - 99)
    yield from swollen(16_000)


def deep(rng) -> Iterator[Attack]:
    for depth in (300, 10_000, 200_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'{"input":[', b"]}")):
            yield Attack(
                f"{depth} deep", ROUTES[int(rng.integers(4))], opening * depth + closing * depth
            )
            yield Attack(f"{depth} open", ROUTES[int(rng.integers(4))], opening * depth)


def unicode(rng) -> Iterator[Attack]:
    for text in (
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\xff\xfe"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf5\x80\x80\x80"',
        b'"\\u12"',
        b'"\\x41"',
        b'"a\nb"',
        b'"\x00"',
        b"\"'",
        b"'a'",
        b'"\\u{41}"',
        b'"' + b"\xe2\x82",
    ):
        for path, key in ((EMBED, b"input"), (SEARCH, b"query"), (ASK, b'ids": ["a"], "question')):
            yield Attack(f"text {text!r}", path, b'{"' + key + b'": ' + text + b"}")
    yield Attack("utf-16", body='{"input": "a"}'.encode("utf-16"))
    yield Attack("blank", body=as_json({"input": "\u200a\u2003 \t"}))


def cut(rng) -> Iterator[Attack]:
    """Good requests cut off somewhere within."""
    shown = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    for path, good in (
        (EMBED, {"input": ["a", "b"], "model": "tiny"}),
        (CHAT, {"messages": shown, "max_tokens": 4, "stream": True}),
        (SEARCH, {"query": "a", "where": "width > 3", "top": 2}),
        (ASK, {"ids": ["0.png"], "question": "what?", "k": 2}),
    ):
        body = as_json(good)
        for keep in sorted(set(rng.integers(0, len(body), 9).tolist())):
            yield Attack(f"cut at {keep}", path, body[:keep])
        yield Attack("twice", path, body + body)


def values(rng) -> Iterator[Attack]:
    """Numbers and names out of range."""
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for path, good, key, wrong in (
        (EMBED, {"input": "a"}, "k", (0, -1, 5, 10**30, "x", 1.5, [1], {})),
        (EMBED, {"input": "a"}, "dimensions", (0, -8, 33, 10**20, "8d")),
        (EMBED, {"input": "a"}, "encoding_format", ("int8", 3)),
        (EMBED, {"input": "a"}, "model", ("x", "", "../tiny", 4, ["tiny"])),
        (
            EMBED,
            {},
            "input",
            (None, [], {}, 5, [[1, 2]], [1], [None], {"text": "a", "path": "/x"}, ""),
        ),
        (CHAT, chat, "temperature", (-1, 1e9, "hot")),
        (CHAT, chat, "top_p", (0, -0.1, 1.1, [])),
        (CHAT, chat, "max_tokens", (0, -1, 10**9, 10**40, "many")),
        (CHAT, chat, "seed", (2**70, "x", -(2**70))),
        (CHAT, chat, "n", (2, 0, "1")),
        (CHAT, chat, "stop", ("a", ["a"], {"a": 1})),
        (CHAT, chat, "tools", ([{}], "all")),
        (CHAT, chat, "k", (2, 0)),
        (SEARCH, {"query": "a"}, "top", (0, -1, 101, 2**70, None)),
        (SEARCH, {"query": "a"}, "k", (3, 0)),
        (SEARCH, {}, "query", ("", None, 3)),
        (SEARCH, {"query": "a"}, "path", ("/etc/passwd",)),
        (ASK, {"ids": ["0.png"]}, "question", ("", " ", None, 3)),
        (ASK, {"ids": ["0.png"], "question": "a"}, "k", (9, -2)),
    ):
        for one in wrong:
            yield Attack(f"{key}={one!r}", path, as_json({**good, key: one}))
    yield Attack("NaN", CHAT, as_json({**chat, "temperature": float("nan")}))


def conversations(rng) -> Iterator[Attack]:
    def said(role: str, content="a") -> dict:
        return {"role": role, "content": content}

    image = {"type": "image_url", "image_url": {"url": data_uri(draw(0, (9, 9)))}}
    for messages in (
        [],
        None,
        "hello",
        {},
        [{}],
        [None],
        [said("assistant")],
        [said("user"), said("assistant")],
        [said("system")],
        [said("tool")],
        [said("user", 5)],
        [said("user", [{"type": "video"}])],
        [said("user", "")],
        [said("user", [{"type": "text"}])],
        [said("user", [{"type": "image_url"}])],
        [said("user", [[]])],
        [said("user"), said("assistant", [image]), said("user")],
        [said("user", [image])],
        [said("user", None)],
        [said("user", [{"type": "image_url", "image_url": {"url": 3}}])],
        [said("user", "word " * 500)],
    ):
        yield Attack(f"messages {str(messages)[:40]}", CHAT, as_json({"messages": messages}))
    both = {"input": "a", "messages": [said("user")]}
    yield Attack("both", EMBED, as_json(both))


def conditions(rng) -> Iterator[Attack]:
    for where in (
        "(",
        ")",
        "1 =",
        "nothing = 1",
        "'",
        "width > 'x' AND",
        "SELECT 1",
        "id IN (SELECT id FROM entries)",
        "repeat(id, 999999999) = ''",
        "1=1; DROP TABLE entries",
        "sleep(9)",
        "read_parquet('/etc/passwd')",
        "(" * 900 + "1" + ")" * 900,
        "NOT " * 400 + "true",
        "- " * 900 + "1 > 0",
        "a" * 3000,
        "\0",
        "`id` = 1",
        "regexp_replace(id, 'a', 'b') = ''",
        "lpad(id, 1000000000) = ''",
        "CASE WHEN (1) THEN",
        "/* */ (",
        "width > 1 OR " * 500,
        "\"lpad\"(id, 10) = ''",
        "lower.lpad(id, 10) = ''",
        "width > 0" + "+1" * 300,
        '"id"' + "||id" * 99 + " = text",
        "id IS DISTINCT FROM repeat('a', 9)",
        "regexp_like(id, '(.{1,40}a){40}c')",
        "id ~ '(.{1,40}a){40}c'",
        "id SIMILAR TO '(.{1,40}a){40}c'",
        "id LIKE '%a" + "_" * 60 + "c%'",
        "id LIKE '%a' || '____________c%'",
        "id ILIKE ('%a____________c%')",
        "id = E'\\'' + 1 + 1 --'",
    ):
        yield Attack(f"where {where[:30]}", SEARCH, as_json({"query": "a", "where": where}))


def ids(rng) -> Iterator[Attack]:
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "' OR 1=1 --",
        "x\0y",
        "",
        "a" * 5000,
        "\u202e",
        "0.png'",
        "*",
        5,
        None,
        ["0.png"],
        {"id": "0.png"},
    ):
        yield Attack(f"id {str(name)[:20]}", ASK, as_json({"ids": [name], "question": "a"}))


def types(rng) -> Iterator[Attack]:
    good = b'{"input": "a"}'
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "json",
        "application/jsonx",
        "text/html; charset=x",
    ):
        yield Attack(f"type {kind!r}", body=good, headers={"Content-Type": kind})
    for body in (
        b"",
        b"null",
        b"[]",
        b"3",
        b'"a"',
        b"true",
        b"{",
        b"}",
        b"{}",
        b"\x1f\x8b",
        b"input=a",
    ):
        for path in ROUTES:
            yield Attack(f"body {body!r}", path, body)
    for encoding in ("gzip", "br"):
        yield Attack(
            encoding, body=zlib.compress(good), headers={**JSON, "Content-Encoding": encoding}
        )


def methods(rng) -> Iterator[Attack]:
    for method in ("PUT", "DELETE", "PATCH", "GET", "OPTIONS", "TRACE", "BREW"):
        yield Attack(method, EMBED, method=method)
        yield Attack(f"{method} healthz", "/healthz" if method != "GET" else "/none", method=method)
    for path in (
        "/v1",
        "/v1/",
        "/v2/embeddings",
        "/v1/completions",
        "/docs",
        "/admin",
        "/v1/models/x",
        "/\u00e9",
    ):
        yield Attack(f"no {path}", path)
    yield Attack("host", headers={**JSON, "Host": "evil.example.com"})
    yield Attack("site", headers={**JSON, "Sec-Fetch-Site": "cross-site"}, body=b'{"input": "a"}')


def heads(rng) -> Iterator[Attack]:
    """What is no proper HTTP."""
    post = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for raw in (
        b"\r\n\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.bytes(64) + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        post + b"Content-Length: -5\r\n\r\n",
        post + b"Content-Length: 1e3\r\n\r\n",
        post + b"Content-Length: 99999999999999999999999\r\n\r\n",
        post + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        post + b"Transfer-Encoding: gzip\r\n\r\n",
        post + b"A: " + b"a" * 100_000 + b"\r\n\r\n",
        post + b" folded: x\r\n: y\r\n\r\n",
        post + b"A\x00B: c\r\n\r\n",
        post + b"B\r: c\r\n\r\n",
        b"GET /" + b"a" * 90_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nffffffffffffffff\r\n",
        b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n",
    ):
        yield Attack(f"raw {raw[:24]!r}", raw=raw)
