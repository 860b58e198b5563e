"""What we use of other packages beside their public interface, pinned in setup.py to the minor
versions it was tried with. When one of these fails, a package has moved: each says what to look at.
"""

from __future__ import annotations

import inspect

import pytest


def test_uvicorn_has_the_protocol_that_heads_are_timed_in():
    """`serve/http/server.py`: _ImpatientProtocol overrides these and reads `cycle`."""
    h11_impl = pytest.importorskip("uvicorn.protocols.http.h11_impl")
    protocol = h11_impl.H11Protocol
    for name in ("connection_made", "handle_events", "connection_lost"):
        assert callable(getattr(protocol, name)), name
    written = inspect.getsource(protocol)
    for name in ("self.cycle", "self.loop", "self.transport"):
        assert name in written, name
    assert "self.response_complete" in inspect.getsource(h11_impl.RequestResponseCycle)


def test_gradio_has_the_routes_and_the_bodies_that_the_guard_knows():
    """`serve/page/guard.py`: its routes, and what `_expected` reads of their bodies."""
    routes = pytest.importorskip("gradio.routes")
    from gradio.data_classes import CancelBody, PredictBody, ResetBody

    written = inspect.getsource(routes)
    for route in ("/queue/join", "/queue/data", "/reset", "/cancel", "/heartbeat/{session_hash}"):
        assert f'"{route}"' in written, route
    assert {"data", "event_data", "fn_index", "session_hash"} <= set(PredictBody.model_fields)
    assert set(CancelBody.model_fields) == {"session_hash", "fn_index", "event_id"}
    assert set(ResetBody.model_fields) == {"event_id"}


def test_gradio_numbers_its_events_as_the_guard_counts_their_inputs():
    """`serve/page/page.py`: _events."""
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks() as page:
        gradio.Button().click(lambda a, b: None, [gradio.Textbox(), gradio.Textbox()], None)
    assert [len(event.inputs) for event in page.fns.values()] == [2]
    assert [event["id"] for event in page.config["dependencies"]] == list(page.fns)
