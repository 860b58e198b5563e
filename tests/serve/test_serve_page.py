"""The page, in a real Chromium: what a person does there, and that nothing else can be done."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

import httpx
import pytest

import crem_jax
from crem_jax import library
from crem_jax.library.index_source import IndexSource
from crem_jax.library.indexing import index, library_info
from crem_jax.serve.http.access import Access
from crem_jax.serve.service import Service
from tests.support.serving import client, draw, serving

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'crem_jax[ui]'")

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
EVIL = "<img src=x onerror=document.title='evil'> ${1+1} {{id}}"


@pytest.fixture(scope="module")
def url(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    for i in range(5):
        draw(i).save(folder / "photos" / f"{i}.png")
    (folder / "photos" / "0.txt").write_text(EVIL)
    model = crem_jax.load(tiny_model_dir)
    lib = library.create(folder / "lib", library_info(model, "tiny", "float32"))
    index(model, lib, IndexSource(str(folder / "photos")))
    with serving(Service(model, "tiny", lib), page=True) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    # Whoever asks for these tests (-m slow) shall not take skipped ones for passed ones.
    try:
        from playwright import sync_api
    except ImportError:
        pytest.fail("the page is tested through playwright: pip install 'crem_jax[dev]'")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.fail("the page is tested in a Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url):
    """The page, and a check that it asked nobody else and met no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    hosts, errors = set(), []
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(url)
    yield opened
    context.close()
    assert hosts <= {"127.0.0.1", None} and errors == []


@pytest.mark.slow
def test_words_find_a_hit_is_asked_and_both_answers_stand_side_by_side(page):
    page.get_by_label("Words").fill("a tree")
    page.get_by_role("button", name="Find").click()
    hits = page.locator(".hit")
    hits.nth(4).wait_for()
    assert hits.count() == 5
    scores = [float(text) for text in page.locator(".hit .line b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    hits.nth(1).click()
    page.locator("#chosen .chosen").wait_for()
    page.locator("#asking .ask").click()
    for kind in ("compressed", "native"):
        facts = page.locator(f"#asking .{kind} .facts")
        facts.get_by_text("to the first token").wait_for()
        page.locator(f"#asking .answer.{kind}:has(.facts)").wait_for()
    assert page.title() != "evil"


@pytest.mark.slow
def test_texts_of_a_library_stay_texts(page):
    page.get_by_label("Words").fill("a tree")
    page.get_by_role("button", name="Find").click()
    page.get_by_text(EVIL, exact=True).wait_for()
    assert page.title() != "evil"


@pytest.mark.slow
def test_a_dropped_picture_finds_itself_and_is_described(page, tmp_path):
    draw(3).save(tmp_path / "mine.png")
    page.locator("#query input[type=file]").set_input_files(tmp_path / "mine.png")
    first = page.locator(".hit").first
    first.wait_for()
    assert first.get_attribute("data-id") == "3.png"
    assert page.locator(".hit .line b").first.inner_text() == "1.000"
    page.locator("#query .clear").click()
    page.get_by_text("text or at least one picture").wait_for()
    page.get_by_role("tab", name="Describe").click()
    draw(4, (3000, 2000)).save(tmp_path / "large.png")
    page.locator("#own input[type=file]").set_input_files(tmp_path / "large.png")
    page.locator("#own img").wait_for()
    assert page.locator("#own img").evaluate("image => image.naturalHeight") == 1280
    described = page.get_by_role("tabpanel").filter(has=page.locator("#own"))
    described.get_by_label("native", exact=True).check()
    described.locator(".ask").click()
    described.locator(".native .facts").get_by_text("memory").wait_for()
    assert not described.locator(".answer.compressed").is_visible()


# what is not reachable


@pytest.fixture
def http(url):
    with client(url) as opened:
        yield opened


def joined(http: httpx.Client, data: list) -> httpx.Response:
    functions = http.get("/config").json()["dependencies"]
    body = {"data": data, "fn_index": functions[0]["id"], "session_hash": "abc"}
    return http.post("/gradio_api/queue/join", json=body)


def test_neither_files_nor_urls_are_read_for_the_page(http):
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for data in ([file], ["a", file, 4, 5], [{"a": 1}], [["a"]], {"a": 1}):
        assert joined(http, data).status_code == 400
    assert joined(http, ["a tree", "", 4, 5]).status_code == 200
    for path in ("file=/etc/passwd", "proxy=http://127.0.0.1/", "upload", "vibe-edit", "runs"):
        assert http.get(f"/gradio_api/{path}").status_code == 404
        assert http.post(f"/gradio_api/{path}", json={}).status_code == 404
    for path in ("/monitoring", "/assets/..%2f..%2f..%2fetc/passwd", "/gradio_api/call/find"):
        assert http.get(path).status_code == 404


def test_the_page_names_no_other_host_and_may_ask_none(http):
    policy = http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert "fonts.g" not in http.get("/theme.css").text


def test_events_that_the_page_does_not_have_are_refused_without_a_word_of_how_it_is_made(http):
    good = {"data": ["a tree", "", 4, 5], "fn_index": 0, "session_hash": "abc"}
    good["fn_index"] = http.get("/config").json()["dependencies"][0]["id"]
    for wrong in (
        *({"fn_index": number} for number in (99, -1, 2**70, 1.5, "0", None, [0], True)),
        *({"event_data": event} for event in (5, "x", [1], {"id": {"a": 1}})),
        *({"session_hash": name} for name in (None, 5, "", "a b", "x" * 99, ["abc"])),
        *({"data": data} for data in (None, [], ["a"], ["a"] * 99, "abcd")),
    ):
        got = http.post("/gradio_api/queue/join", json=good | wrong)
        assert got.status_code == 400, wrong
        assert set(got.json()) == {"error"} and "Traceback" not in got.text
        assert "gradio" not in got.text.lower()
    for path in ("cancel", "reset"):
        for body in (b"[]", b"{", b'{"fn_index": "x"}', b'{"event_id": [1]}', b"[" * 9000):
            got = http.post(f"/gradio_api/{path}", content=body)
            assert got.status_code == 400 and "Traceback" not in got.text


def test_no_other_site_is_let_in_whatever_name_the_server_goes_by(tiny_model_dir):
    service = Service(crem_jax.load(tiny_model_dir), "tiny")
    access = Access(hosts={"crem.example.com", "127.0.0.1"})
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "a"}
    with serving(service, access, page=True) as address, client(address) as http:
        for host in ("crem.example.com", "127.0.0.1"):
            headers = {"Host": host, "Origin": "https://evil.example.com"}
            for method, path in (
                *(("GET", path) for path in ("/", "/config", "/theme.css", "/healthz")),
                *(("POST", path) for path in ("/gradio_api/queue/join", "/v1/embeddings")),
                *(("OPTIONS", path) for path in ("/", "/gradio_api/queue/join", "/v1/search")),
            ):
                more = asks if method == "OPTIONS" else {}
                got = http.request(method, path, headers=headers | more)
                allowed = [n for n in got.headers if n.startswith("access-control-")]
                assert not allowed, (host, method, path)
