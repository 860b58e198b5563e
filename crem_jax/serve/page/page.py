"""The web page: search by words or a picture, ask about a hit, or ask about a new picture.

It is a Gradio app mounted under `/` of the server. It loads nothing from the network, and uploads
and serves no files: pictures travel as data URIs (see `page.guard`).
"""

from __future__ import annotations

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI

from crem_jax.serve.errors import ApiError, answer_for
from crem_jax.serve.inputs.pictures import data_uri
from crem_jax.serve.page.answers import answers
from crem_jax.serve.page.guard import PageGuard
from crem_jax.serve.page.parts import (
    ANSWER,
    CHOSEN,
    CSS,
    DROP,
    HITS,
    KINDS,
    answer_card,
    header,
    hit_card,
    hit_cards,
)
from crem_jax.serve.service import Service

WHAT = "What is this?"
MODES = ("side by side", "compressed", "native")
_AT_ONCE = 16
_FONT = ("system-ui", "sans-serif")


def mount_page(app: FastAPI, service: Service) -> None:
    """Mounts the page under `/`."""
    page = make_page(service)
    page.queue(default_concurrency_limit=_AT_ONCE, max_size=service.limits.requests)
    app.add_middleware(PageGuard, events=lambda: _events(page))
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=_FONT, font_mono=("ui-monospace", "monospace")
    )
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,  # what its functions say of errors is shown all the same
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )


def _events(page: gr.Blocks) -> dict[int, int]:
    """Event number -> number of inputs, for every event of the page."""
    return {number: len(event.inputs) for number, event in page.fns.items()}


def make_page(service: Service) -> gr.Blocks:
    """Makes the page's components and their event handlers."""
    quiet = dict(api_visibility="private", show_progress="hidden")
    with gr.Blocks(title=f"crem · {service.name}", analytics_enabled=False) as page:
        gr.HTML(header(service), js_on_load=None)
        with gr.Tabs():
            if service.library is not None and service.model.config.num_chorus:
                with gr.Tab("Find"):
                    _find_tab(service, quiet)
            with gr.Tab("Describe"):
                _describe_tab(service, quiet)
    return page


def _find_tab(service: Service, quiet: dict[str, Any]) -> None:
    with gr.Row(equal_height=True):
        with gr.Column(scale=4, min_width=260):
            words = gr.Textbox(
                placeholder="a tiger", label="Words", elem_id="words", autofocus=True, max_lines=1
            )
            with gr.Row():
                ks = sorted(service.library.info.prefixes)
                k = gr.Dropdown(ks, value=ks[-1], label="Chorus tokens compared", min_width=120)
                top = gr.Slider(1, min(48, service.limits.top), 12, step=1, label="How many")
            button = gr.Button("Find", variant="primary", elem_id="find")
        with gr.Column(scale=2, min_width=200):
            picture = gr.HTML("", **DROP, elem_id="query", elem_classes="picture")
    hits = gr.HTML(hit_cards([]), **HITS, elem_id="hits")
    chosen = gr.State("")
    with gr.Row(visible=False, elem_id="asking") as asking:
        with gr.Column(scale=1, min_width=180):
            shown = gr.HTML(hit_card(), **CHOSEN, elem_id="chosen")
        with gr.Column(scale=3, min_width=320):
            question, mode, ask, left, right = _asking()

    async def find(words: str, picture: str, k: int, top: float):
        found = []
        try:
            with service.admission.admitted():
                pictures = (("the picture", picture),) if picture else ()
                for hit in await service.search(words, pictures, int(k), int(top)):
                    found.append(hit_card(hit.entry, f"{hit.score:.3f}"))
        except Exception as error:
            return hit_cards([], str(answer_for(error)))
        return hit_cards(found)

    async def choose(event: gr.EventData):
        name = str(event.id)
        try:
            with service.admission.admitted():
                entry = await service.entry(name)
        except Exception as error:
            raise gr.Error(str(answer_for(error)), print_exception=False) from error
        return gr.Row(visible=True), name, hit_card(entry), *map(answer_card, KINDS)

    async def answer(name: str, question: str, mode: str):
        calls = {
            "compressed": lambda: _stored(service, name, question),
            "native": lambda: _native(service, name, question),
        }
        async for update in answers(service, calls, mode):
            yield update

    inputs = [words, picture, k, top]
    gr.on([button.click, words.submit, picture.input], find, inputs, hits, **quiet)
    hits.select(choose, None, [asking, chosen, shown, left, right], **quiet)
    gr.on([ask.click, question.submit], answer, [chosen, question, mode], [left, right], **quiet)


def _describe_tab(service: Service, quiet: dict[str, Any]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            picture = gr.HTML("", **DROP, elem_id="own", elem_classes="picture")
        with gr.Column(scale=3, min_width=320):
            question, mode, ask, left, right = _asking()

    async def describe(picture: str, question: str, mode: str):
        calls = {
            "compressed": lambda: _describe(service, picture, question, True),
            "native": lambda: _describe(service, picture, question, False),
        }
        async for update in answers(service, calls, mode):
            yield update

    inputs = [picture, question, mode]
    gr.on([ask.click, question.submit], describe, inputs, [left, right], **quiet)


def _asking():
    question = gr.Textbox(value=WHAT, label="Question", max_lines=3)
    mode = gr.Radio(list(MODES), value=MODES[0], label="Answer", elem_classes="mode")
    ask = gr.Button("Ask", variant="primary", elem_classes="ask")
    with gr.Row(equal_height=True):
        left = gr.HTML(answer_card("compressed"), **ANSWER, elem_classes="compressed")
        right = gr.HTML(answer_card("native"), **ANSWER, elem_classes="native")
    return question, mode, ask, left, right


async def _stored(service: Service, name: str, question: str):
    (pieces,) = await service.ask([name], question)
    return pieces


async def _describe(service: Service, picture: str, question: str, compressed: bool):
    if not picture:
        raise ApiError(400, "there is no picture to look at")
    pieces, _ = await service.answer(question, (("the picture", picture),), compressed=compressed)
    return pieces


async def _native(service: Service, name: str, question: str):
    """A native answer about an entry, from its thumbnail, as the file may not exist any more."""
    entry = await service.entry(name)
    picture = data_uri(entry.thumbnail) if entry.thumbnail else ""
    return await _describe(service, picture, question, False)
