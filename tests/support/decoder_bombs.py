"""Small files that are much work to open or decode, though their pixels are few enough."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.support.abuse_pictures import chunk, png

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SMALL = Image.new("RGB", (8, 8), "red")


def encoded(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


# JPEG


def scans(count: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG that has one of its scans `count` times; all are a few bytes."""
    data = encoded(Image.new("L", size, 99), "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    table = data.rfind(b"\xff\xc4", 0, starts[1])  # the Huffman table that the second scan needs
    second = data[table : starts[2] if len(starts) > 2 else -2]
    second = second[: second.rfind(b"\xff\xc4")] if second.count(b"\xff\xc4") > 1 else second
    return data[: starts[0]] + data[starts[0] : table] + second * count + b"\xff\xd9"


def segments(count: int, marker: int = 0xFE, payload: bytes = b"") -> bytes:
    """A JPEG with so many segments before its first scan."""
    data = encoded(SMALL, "JPEG")
    one = struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload
    return data[:2] + one * count + data[2:]


def fill(count: int) -> bytes:
    """A JPEG with so many bytes between two segments that mean nothing."""
    data = encoded(SMALL, "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


# EXIF and TIFF


def directory(entries: int, size: int, extra: bytes = b"") -> bytes:
    """TIFF's structure: `entries` tags, the value of each the same `size` bytes."""
    at = 8 + 2 + 12 * entries + 4
    tags = b"".join(struct.pack("<HHII", 0x8000 + i, 7, size, at) for i in range(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + tags + b"\0" * 4 + b"\0" * size + extra


def exif(form: str, entries: int, size: int) -> bytes:
    """A picture whose EXIF has so many tags, all of which are the same bytes."""
    return encoded(SMALL, form, exif=b"Exif\0\0" + directory(entries, size))


def beginnings(count: int) -> bytes:
    """A WebP whose EXIF begins so many times."""
    return encoded(SMALL, "WEBP", exif=b"Exif\0\0" * count)


def strips(count: int) -> bytes:
    """A TIFF of `count` rows, each a strip of its own; all of them are the same bytes."""
    offsets = 8 + 2 + 12 * 8 + 4
    row = offsets + 8 * count
    tags = (
        (256, 4, 1, 1),
        (257, 4, 1, count),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, count, offsets),
        (278, 4, 1, 1),
        (279, 4, count, offsets + 4 * count),
    )
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    values = struct.pack("<I", row) * count + struct.pack("<I", 1) * count
    return b"II*\0\x08\0\0\0" + body + b"\0" * 4 + values + b"\7"


# PNG


def chunks(count: int, kind: bytes = b"teSt", data: bytes = b"") -> bytes:
    """A PNG with so many chunks before its pixels."""
    whole = encoded(SMALL, "PNG")
    at = whole.index(b"IDAT") - 4
    return whole[:at] + chunk(kind, data) * count + whole[at:]


def animation(count: int) -> bytes:
    """An APNG that announces so many frames, and has none."""
    whole = encoded(SMALL, "PNG")
    at = whole.index(b"IDAT") - 4
    one = [struct.pack(">IIIIIHHBB", i, 8, 8, 0, 0, 1, 9, 0, 0) for i in range(count)]
    return whole[:at] + b"".join(chunk(b"fcTL", data) for data in one) + whole[at:]


def pieces(count: int) -> bytes:
    """A PNG whose pixels are in so many chunks, most of them empty."""
    whole = encoded(SMALL, "PNG")
    at = whole.index(b"IDAT") - 4
    return whole[:at] + chunk(b"IDAT", b"") * count + whole[at:]


def inflated(kind: str, count: int, size: int = 1 << 20) -> bytes:
    """A PNG with so many texts or profiles that inflate to `size` bytes each."""
    packed = zlib.compress(b"a" * size, 9)
    data = {
        "zTXt": b"Comment\0\0" + packed,
        "iTXt": b"Comment\0\1\0\0\0" + packed,
        "iCCP": b"profile\0\0" + packed,
    }[kind]
    return chunks(count, kind.encode(), data)


def promised(width: int, height: int) -> bytes:
    """A PNG that has hardly any of the pixels it promises."""
    return png(width, height)


# GIF, WebP, AVIF


def comment(count: int) -> bytes:
    """A GIF with a comment of so many blocks of 255 bytes."""
    whole = encoded(SMALL, "GIF")
    at = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:at] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * count + b"\0" + whole[at:]


def extensions(count: int) -> bytes:
    """A GIF with so many empty extensions before its picture."""
    whole = encoded(SMALL, "GIF")
    at = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:at] + b"\x21\xfe\1a\0" * count + whole[at:]


def frames(form: str, count: int, size: int = 16) -> bytes:
    """An animation."""
    rng = np.random.default_rng(0)
    still = [Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)) for _ in range(count)]
    options = {"duration": 10} if form != "AVIF" else {"speed": 10, "duration": 10}
    return encoded(still[0], form, save_all=True, append_images=still[1:], **options)


def webp_frames(count: int) -> bytes:
    """An animated WebP of so many frames, which are all the same."""
    whole = frames("WEBP", 2)
    at = whole.index(b"ANMF")
    size = 8 + struct.unpack("<I", whole[at + 4 : at + 8])[0]
    body = whole[8:at] + whole[at : at + size + size % 2] * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


# icons


def icons(count: int) -> bytes:
    """An ICO that lists so many pictures, all of which are the same."""
    data = encoded(SMALL, "PNG")
    at = 6 + 16 * count
    entry = struct.pack("<BBBBHHII", 8, 8, 0, 0, 1, 32, len(data), at)
    return struct.pack("<HHH", 0, 1, count) + entry * count + data


BOMBS: dict[str, Callable[[int], bytes]] = {
    "scans": scans,
    "comments": segments,
    "profiles": lambda n: segments(n, 0xE2, b"ICC_PROFILE\0\1\1"),
    "frames' headers": lambda n: segments(n, 0xC0, b"\x08\0\x08\0\x08\1\1\x11\0"),
    "fill": lambda n: fill(100 * n),
    "chunks": chunks,
    "pieces": pieces,
    "animation": animation,
    "strips": strips,
    "comment": comment,
    "extensions": extensions,
    "icons": icons,
}
"""name: a bomb as large as it is told."""


def hostile(rng: np.random.Generator) -> bytes:
    """Any bomb or animation, of any size up to a few MB, perhaps with some bytes overwritten."""
    makers = [
        *BOMBS.values(),
        webp_frames,
        beginnings,
        lambda n: frames(str(rng.choice(["GIF", "PNG", "AVIF"])), 2 + n % 20),
        lambda n: inflated(str(rng.choice(["zTXt", "iTXt", "iCCP"])), 1 + n % 60),
        lambda n: exif(str(rng.choice(["PNG", "WEBP", "JPEG"])), 1 + n % 3000, 1 + n % 25_000),
        lambda n: directory(1 + n % 5000, 1 + n % 50_000),
        lambda n: scans(1 + n % 900, (int(rng.integers(8, 3000)), int(rng.integers(8, 3000)))),
    ]
    data = bytearray(makers[rng.integers(len(makers))](int(10 ** rng.uniform(0, 3.9))))
    if rng.integers(2):
        for at in rng.integers(0, len(data), rng.integers(1, 30)):
            data[at] = rng.integers(256)
    return bytes(data)
