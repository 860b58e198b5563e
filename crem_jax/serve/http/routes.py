"""The HTTP API: OpenAI's routes, and those of the library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from crem_jax.inference.sampling import Sampling
from crem_jax.serve.engine.jobs import AnswerChunk
from crem_jax.serve.errors import ApiError
from crem_jax.serve.http.conversation import read_conversation
from crem_jax.serve.http.openai_format import Completion, embeddings
from crem_jax.serve.http.request_limits import at_leisure
from crem_jax.serve.http.schemas import (
    AskRequest,
    ChatRequest,
    EmbeddingsRequest,
    InputItem,
    SearchRequest,
)
from crem_jax.serve.http.server_sent_events import begun, event_stream, whole
from crem_jax.serve.inputs.pictures import data_uri
from crem_jax.serve.service import Service

T = TypeVar("T", bound=BaseModel)


def read(schema: type[T]) -> Callable[[Request], Any]:
    """A dependency that gives the request's body, checked."""

    async def body(request: Request) -> T:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "expected a body of Content-Type application/json")
        try:
            body = await request.body()
            return await at_leisure(body, schema.model_validate_json, body)
        except ValidationError as error:
            raise _invalid(error) from None

    return Depends(body)


def documented(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a request body."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"openapi_extra": {"requestBody": {"content": content, "required": True}}}


Embeddings = Annotated[EmbeddingsRequest, read(EmbeddingsRequest)]
Chat = Annotated[ChatRequest, read(ChatRequest)]
Search = Annotated[SearchRequest, read(SearchRequest)]
Ask = Annotated[AskRequest, read(AskRequest)]


def make_routes(service: Service) -> APIRouter:
    """All routes of a service."""
    router, limits = APIRouter(), service.limits

    @router.post("/v1/embeddings", **documented(EmbeddingsRequest))
    async def embed(body: Embeddings) -> Response:
        _check_model(service, body.model)
        items = _items(body)
        if len(items) > limits.inputs:
            raise ApiError(400, f"{len(items)} inputs; expected at most {limits.inputs}", "input")
        vectors, tokens = await service.embed(items, body.k, body.dimensions)
        return JSONResponse(embeddings(vectors, body.encoding_format, service.name, tokens))

    @router.post("/v1/chat/completions", **documented(ChatRequest))
    async def chat(body: Chat) -> Response:
        _check_model(service, body.model)
        said = read_conversation(body.messages)
        pieces, asked = await service.answer(
            said.text,
            said.pictures,
            said.turns,
            body.compressed,
            body.k,
            body.max_completion_tokens or body.max_tokens,
            _sampling(body),
        )
        completion = Completion(service.name, asked)
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _chunks(completion, await begun(pieces), usage)
            return event_stream(events, limits.deadline)
        return JSONResponse(completion.whole(*await whole(pieces)))

    @router.post("/v1/search", **documented(SearchRequest))
    async def search(body: Search) -> Response:
        pictures = () if body.image is None else (("image", body.image),)
        hits = await service.search(body.query, pictures, body.k, body.top, body.where)
        return JSONResponse({"object": "list", "data": [_hit(h, body.thumbnails) for h in hits]})

    @router.post("/v1/ask", **documented(AskRequest))
    async def ask(body: Ask) -> Response:
        if body.stream and len(body.ids) > 1:
            raise ApiError(400, "one answer at a time can be streamed", "ids")
        answers = await service.ask(
            body.ids, body.question, body.k, body.max_tokens, _sampling(body)
        )
        if body.stream:
            events = _pieces(body.ids[0], await begun(answers[0]))
            return event_stream(events, limits.deadline)
        said = await asyncio.gather(*map(whole, answers))
        data = [
            {"id": name, "answer": text, **_ending(last)}
            for name, (text, last) in zip(body.ids, said, strict=True)
        ]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_about(service)]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        _check_model(service, name)
        return JSONResponse(_about(service))

    @router.get("/healthz")
    async def health() -> Response:
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


def _sampling(body: ChatRequest | AskRequest) -> Sampling:
    """The sampling parameters of a request; seeds are taken modulo 2³¹."""
    seed = None if body.seed is None else body.seed % 2**31
    return Sampling(body.temperature, body.top_p, seed)


def _items(body: EmbeddingsRequest) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    if (body.input is None) == (body.messages is None):
        raise ApiError(400, "expected either input or messages", "input")
    if body.messages is not None:
        said = read_conversation(body.messages)
        if said.turns:
            raise ApiError(400, "expected messages of the user alone", "messages")
        return [(said.text, said.pictures)]
    given = body.input if isinstance(body.input, list) else [body.input]
    if not given:
        raise ApiError(400, "input is empty; expected at least one text", "input")
    items = []
    for i, one in enumerate(given):
        one = InputItem(text=one) if isinstance(one, str) else one
        pictures = () if one.image is None else ((f"input[{i}].image", one.image),)
        if not one.text.strip() and not pictures:
            raise ApiError(400, f"input[{i}] is empty; expected text or a picture", "input")
        items.append((one.text, pictures))
    return items


async def _chunks(
    completion: Completion, pieces: AsyncIterator[AnswerChunk], usage: bool
) -> AsyncIterator[dict[str, Any]]:
    yield completion.opening()
    said = None
    async for said in pieces:
        if said.text or said.ended:
            yield completion.piece(said)
    if usage and said is not None:
        yield completion.usage(said)


async def _pieces(name: str, pieces: AsyncIterator[AnswerChunk]) -> AsyncIterator[dict[str, Any]]:
    async for said in pieces:
        if said.text or said.ended:
            ending = _ending(said) if said.ended else {}
            yield {"id": name, "text": said.text, **ending}


def _ending(last: AnswerChunk) -> dict[str, Any]:
    return {
        "finish_reason": last.ended,
        "tokens": last.tokens,
        "memory_bytes": last.memory_bytes,
    }


def _hit(hit, thumbnails: bool) -> dict[str, Any]:
    entry = hit.entry
    found = {
        "id": entry.id,
        "score": round(hit.score, 6),
        "text": entry.text,
        "uri": entry.uri,
        "metadata": dict(entry.metadata),
        "width": entry.width,
        "height": entry.height,
        "source": entry.source,
    }
    if thumbnails:
        found["thumbnail"] = data_uri(entry.thumbnail) if entry.thumbnail else None
    return found


def _about(service: Service) -> dict[str, Any]:
    config, library = service.model.config, service.library
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "crem_jax",
        "num_chorus": config.num_chorus,
        "dimensions": config.text.hidden_size,
        "max_model_len": config.text.max_positions,
        "library": None
        if library is None
        else {
            "entries": len(library),
            "prefixes": sorted(library.info.prefixes),
            "fingerprint": library.info.fingerprint,
        },
    }


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.name):
        message = f"the model {name[:80]!r} is not here; this server has {service.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def _invalid(error: ValidationError) -> ApiError:
    """The first validation error of a body, without quoting the body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    message = first["msg"].removeprefix("Value error, ")[:300]
    return ApiError(400, f"{where}: {message}" if where else message, where or None, "invalid")
