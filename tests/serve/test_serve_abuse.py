"""Malformed requests: each is refused, and the server goes on."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import httpx
import pytest

import crem_jax
from crem_jax import library
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.serve.errors import ApiError
from crem_jax.serve.inputs.remote import Fetcher, is_public
from crem_jax.serve.limits import Limits
from crem_jax.serve.service import Service
from tests.support.abuse import attacks
from tests.support.abuse_requests import BODY_BYTES, Attack
from tests.support.serving import client, data_uri, draw, serving

COUNT = 550
LIMITS = Limits(body_bytes=BODY_BYTES, body_seconds=1.0, head_seconds=1.0)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def names(*answers: str):
    """A resolver that gives one answer after the other."""
    left = list(answers)

    async def resolve(host: str, port: int) -> list[str]:
        return [left.pop(0) if len(left) > 1 else left[0]]

    return resolve


@pytest.fixture(scope="module")
def service(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("abused")
    (folder / "photos").mkdir()
    draw(0).save(folder / "photos" / "0.png")
    model = crem_jax.load(tiny_model_dir)
    lib = library.create(folder / "lib", library_info(model, "tiny", "float32"))
    index(model, lib, IndexSource(str(folder / "photos")))
    fetcher = Fetcher(["https://allowed.test/pictures/"], BODY_BYTES, 5.0, names("10.0.0.1"))
    return Service(model, "tiny", lib, LIMITS, fetcher)


@pytest.fixture(scope="module")
def url(service):
    with serving(service) as address:
        yield address


def status_of(http: httpx.Client, attack: Attack) -> int:
    if attack.raw:
        return raw_status(http, attack.raw)
    headers = {name: value.encode("latin-1") for name, value in attack.headers.items()}
    got = http.request(attack.method, attack.path, content=attack.body, headers=headers)
    if got.status_code not in (404, 405):
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}, attack.name
    assert len(got.content) < 2000, f"{attack.name}: what was sent comes back"
    return got.status_code


def raw_status(http: httpx.Client, *parts: bytes) -> int:
    """The status that raw bytes are answered with."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=30) as sock:
        for part in parts:
            sock.sendall(part)
        answer = sock.makefile("rb").readline()
    return int(answer.split()[1]) if answer else 0


def test_malformed_requests_are_refused_and_harm_nothing(url, service, rng):
    statuses: Counter[int] = Counter()
    with client(url) as http:
        for attack in attacks(rng, COUNT):
            status = status_of(http, attack)
            assert 400 <= status < 500, f"{attack.name}: {status}"
            statuses[status] += 1
        assert {400, 403, 404, 405, 413, 415} <= set(statuses)
        assert http.get("/healthz").json() == {"status": "ok"}
        good = {"input": ["a", {"image": data_uri(draw(0))}]}
        assert http.post("/v1/embeddings", json=good).status_code == 200
    assert service.admission.inside == 0


def test_slow_heads_and_bodies_are_ended_and_others_are_answered_meanwhile(url):
    slow = {
        "head": (HEAD,),
        "nothing": (),
        "body": (HEAD + b"Content-Length: 100\r\n\r\n", b'{"input"'),
        "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b'3\r\n{"i\r\n'),
    }
    got: dict[str, int] = {}
    with client(url) as http:

        def send(name: str) -> None:
            got[name] = raw_status(http, *slow[name])

        threads = [threading.Thread(target=send, args=(name,)) for name in slow]
        for thread in threads:
            thread.start()
        for _ in range(3):
            assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
        for thread in threads:
            thread.join()
    assert got == dict.fromkeys(slow, 408)


def test_callers_that_leave_in_the_middle_leave_nothing_behind(url, service):
    parts = urlsplit(url)
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 400, "stream": true}'
    head = HEAD.replace(b"embeddings", b"chat/completions")
    for sent in (
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Content-Length: 90\r\n\r\n" + body[:9],
        head[:20],
    ):
        with socket.create_connection((parts.hostname, parts.port)) as sock:
            sock.sendall(sent)
    with client(url) as http:
        while http.get("/metrics").text.count("crem_requests_inside 0.0") == 0:
            pass
        assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200


# addresses


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((a, False) for a in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "0.0.0.0")),
        *((a, False) for a in ("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255")),
        *((a, False) for a in ("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1")),
        *((a, False) for a in ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1")),
        *((a, False) for a in ("2002:7f00:1::", "2001:0:0:0:0:0:f5ff:fffe", "no address", "")),
        *((a, False) for a in ("fec0::1", "3fff::1", "192.88.99.1", "168.63.129.16", "5f00::1")),
        *((a, False) for a in ("64:ff9b:1::1", "64:ff9b:1::808:808", "2001:10::1", "2001:20::1")),
        *((a, False) for a in ("::7f00:1", "::10.0.0.1", "::ffff:168.63.129.16", "198.18.0.1")),
        *((a, False) for a in ("240.0.0.1", "0.1.2.3", "192.0.0.9", "192.0.2.1", "100::1")),
        *((a, False) for a in ("2002:a83f:8110::1", "64:ff9b::a83f:8110", "203.0.113.1")),
        *((a, True) for a in ("64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8")),
    ],
)
def test_only_public_addresses_are_public(address, public):
    assert is_public(address) is public


class Pictures(BaseHTTPRequestHandler):
    """/pictures/a.png is one; /pictures/to?URL redirects there; all else is secret."""

    data = b""

    def do_GET(self):
        path, _, target = self.path.partition("?")
        if path == "/pictures/to":
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        body = self.data if path == "/pictures/a.png" else b"secret" * 1000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def remote():
    """The port of a web server on the loopback."""
    Pictures.data = base64.b64decode(data_uri(draw(0)).partition(",")[2])
    with HTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def fetch(fetcher: Fetcher, url: str) -> bytes:
    return asyncio.run(fetcher.fetch(url, "image"))


def test_pictures_below_an_allowed_prefix_are_fetched(remote):
    base = f"http://pictures.test:{remote}/pictures/"
    fetcher = Fetcher([base], 10_000, 5.0, names("127.0.0.1"), lambda ip: ip == "127.0.0.1")
    assert fetch(fetcher, f"{base}a.png") == Pictures.data
    assert fetch(fetcher, f"{base}to?a.png") == Pictures.data
    for url, complaint in (
        (f"http://pictures.test:{remote}/secret", "no allowed address"),
        (f"{base}to?/secret", "no allowed address"),
        (f"{base}to?http://127.0.0.1:{remote}/secret", "no allowed address"),
        (f"{base}to?to?to?to?a.png", "redirects too often"),
        (f"{base}../secret", "no allowed address"),
        (f"{base}%2e%2e/secret", "no allowed address"),
    ):
        with pytest.raises(ApiError, match=complaint):
            fetch(fetcher, url)
    small = Fetcher([base], 100, 5.0, names("127.0.0.1"), lambda ip: True)
    with pytest.raises(ApiError, match="more than 100 bytes"):
        fetch(small, f"{base}b.png")


def test_a_name_that_leads_inside_is_refused_even_if_it_changes_its_mind(remote):
    base = f"http://pictures.test:{remote}/pictures/"
    with pytest.raises(ApiError, match="not public"):
        fetch(Fetcher([base], 10_000, 5.0, names("127.0.0.1")), f"{base}a.png")
    # Public when it is checked, this machine a moment later: only the checked address is used, and
    # nothing answers there.
    turning = names("192.0.2.1", "127.0.0.1")
    rebinding = Fetcher([base], 10_000, 0.2, turning, lambda ip: ip != "127.0.0.1")
    with pytest.raises(ApiError, match="cannot be reached"):
        fetch(rebinding, f"{base}a.png")
    both = Fetcher([base], 10_000, 5.0, names("127.0.0.1"), is_public)
    with pytest.raises(ApiError, match="not public"):
        fetch(both, f"{base}to?{base}a.png")


def test_what_speaks_no_tls_is_an_error_of_the_request(remote):
    base = f"https://pictures.test:{remote}/pictures/"
    fetcher = Fetcher([base], 10_000, 5.0, names("127.0.0.1"), lambda ip: True)
    with pytest.raises(ApiError, match="cannot be"):
        fetch(fetcher, f"{base}a.png")


@pytest.mark.parametrize("port", ["0", "00", "65536", "-1", "443x", "4 43"])
def test_a_port_that_is_none_is_no_default_port(port):
    fetcher = Fetcher(["https://allowed.test/pictures/"], 10)
    assert fetcher.allows("https://allowed.test:443/pictures/a.png")
    assert not fetcher.allows(f"https://allowed.test:{port}/pictures/a.png")
    with pytest.raises(ValueError, match="is no URL prefix"):
        Fetcher([f"https://allowed.test:{port}/pictures/"], 10)


def test_prefixes_that_are_none_are_refused():
    for prefix in ("example.com", "ftp://example.com/", "https://", "https://a@b/", "file:///"):
        with pytest.raises(ValueError, match="is no URL prefix"):
            Fetcher([prefix], 10)
