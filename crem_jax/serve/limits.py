"""The limits of a server: sizes of requests, concurrency, and time."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
      requests: that are worked on or wait at one time; more are refused with 429.
      rows: embeddings in one batch, and answers that are made at one time.
      deadline: seconds from a request's arrival to the end of its answer, else 504.
      elements: values and keys in one JSON body.
      body_bytes: of one request. buffered_bytes: of all requests that are being read.
      body_seconds: to send a body. head_seconds: to send a request's head.
      pixels: of one picture. picture_seconds: to decode it. images: of one request.
      inputs: embeddings of one request.
      tokens: of one answer. top: hits of one search.
      condition_seconds: that a condition may take.
      connections: open at one time.
    """

    requests: int = 64
    rows: int = 16
    deadline: float = 60.0
    elements: int = 16_384
    body_bytes: int = 20 << 20
    buffered_bytes: int = 256 << 20
    body_seconds: float = 20.0
    head_seconds: float = 10.0
    pixels: int = 32_000_000
    picture_seconds: float = 10.0
    images: int = 16
    inputs: int = 256
    tokens: int = 512
    top: int = 100
    condition_seconds: float = 10.0
    connections: int = 512
