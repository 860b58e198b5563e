"""Damaged records and pictures, drawn at random."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
ODD_VALUES = (
    None, True, 0, -1, 3.5, 10**4000, "", " ", "\x00", "a/" * 3000, [], {}, [[]], [None], {"a": 1},
    ["x", 3], "\ud800", "..", "/", "text " * 50_000,
)  # fmt: skip


def picture(rng: np.random.Generator, name: str = "") -> bytes:
    """An encoded picture of a random format, mode and size."""
    name = name or str(rng.choice(FORMATS))
    height, width = rng.integers(1, 60, 2)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "1", "LA", "I;16")}
    mode = str(rng.choice(modes.get(name, ("RGB",))))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    elif image.mode != mode:
        image = image.convert("RGB").convert(mode)
    out, more = io.BytesIO(), {}
    if name == "GIF" and rng.random() < 0.5:
        more = dict(save_all=True, append_images=[image.rotate(90)] * 3)
    if name == "JPEG" and rng.random() < 0.5:
        more = dict(exif=b"Exif\x00\x00" + rng.bytes(int(rng.integers(1, 200))))
    image.save(out, name, **more)
    return out.getvalue()


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 8))):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def bomb(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG that says it is 60,000 pixels square."""
    png, size = bytearray(picture(rng, "PNG")), (60_000).to_bytes(4, "big")
    png[16:24] = size + size
    import zlib

    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


def place_damaged_picture(path: Path, rng: np.random.Generator) -> None:
    """Something that is perhaps no picture, at `path`."""
    kind = int(rng.integers(9))
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.touch()
    elif kind == 3:
        path.write_text("hello")
    elif kind == 4:
        path.symlink_to(path.with_name("nowhere"))
    elif kind > 4:
        change = (flipped, cut, bomb, lambda data, rng: data)[kind - 5]
        path.write_bytes(change(picture(rng), rng))


def _odd_value(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    key = str(rng.choice(list(row)))
    value = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    if isinstance(value, int) and value > 10**100:  # json.dumps refuses so many digits
        return json.dumps({**row, key: "HUGE"}).replace('"HUGE"', "1" + "0" * 4400).encode()
    return json.dumps({**row, key: value}).encode()


def _other_key(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    key = str(rng.choice(list(row)))
    changed = {name if name != key else f"{name}x": value for name, value in row.items()}
    return json.dumps(changed).encode()


def _no_key(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    key = str(rng.choice(list(row)))
    return json.dumps({name: value for name, value in row.items() if name != key}).encode()


def _deep(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    key, depth = str(rng.choice(list(row))), int(rng.choice([5, 500, 100_000]))
    nested = "[" * depth + "]" * depth
    return json.dumps({**row, key: "DEEP"}).replace('"DEEP"', nested).encode()


def _not_a_number(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    return json.dumps({**row, str(rng.choice(list(row))): float("nan")}).encode()


def _not_unicode(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    data = bytearray(json.dumps(row).encode())
    data[int(rng.integers(len(data)))] = 0xFF
    return bytes(data)


ROW_MUTATIONS: tuple[Callable[[dict[str, Any], np.random.Generator], bytes], ...] = (
    _odd_value,
    _odd_value,
    _other_key,
    _no_key,
    _deep,
    _not_a_number,
    _not_unicode,
    lambda row, rng: flipped(json.dumps(row).encode(), rng),
    lambda row, rng: cut(json.dumps(row).encode(), rng),
)


def mutated_line(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    """The row as one line of JSON, damaged."""
    mutate = ROW_MUTATIONS[int(rng.integers(len(ROW_MUTATIONS)))]
    return mutate(row, rng).replace(b"\n", b" ") or b"{"
