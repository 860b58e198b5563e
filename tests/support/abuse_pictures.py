"""Malformed pictures, and pictures that are elsewhere."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.support.abuse_requests import CHAT, EMBED, SEARCH, Attack, as_json
from tests.support.serving import data_uri, draw


def picture(uri: str, rng: np.random.Generator) -> tuple[str, bytes]:
    """A request with a picture in it: its path and body."""
    shown = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]
    path, body = [
        (EMBED, {"messages": shown}),
        (EMBED, {"input": [{"image": uri}]}),
        (CHAT, {"messages": [*shown, {"role": "user", "content": "what?"}]}),
        (SEARCH, {"image": uri}),
    ][rng.integers(4)]
    return path, as_json(body)


def as_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(width: int, height: int, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header promises pixels that are not there."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + body


def bombs(rng) -> Iterator[Attack]:
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, "PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * (80 << 20), 9))
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0," + b"\0" * 4
    bmp = (
        b"BM"
        + struct.pack("<IHHIIiiHHII", 60, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0)
        + b"\0" * 20
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    tiff += (
        struct.pack("<HHII", 256, 4, 1, 10**6) + struct.pack("<HHII", 257, 4, 1, 10**6) + b"\0" * 4
    )
    pictures = {
        "real": out.getvalue(),
        "text": png(2**31 - 1, 8, extra=text),
        "gif": gif + struct.pack("<HH", 65535, 65535) + b"\0\x08\0;",
        "bmp": bmp,
        "tiff": tiff,
    }
    for width in (2**31 - 1, 100_000, 65_536, 2**32 - 1):
        for height in (1, 1000, 2**31 - 1):
            if width * height > 40_000_000:
                pictures[f"{width}x{height}"] = png(width, height)
    for name, data in pictures.items():
        yield Attack(f"bomb {name}", *picture(as_uri(data), rng))


def damaged(rng) -> Iterator[Attack]:
    """Pictures cut short or overwritten, and other files called pictures."""
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = base64.b64decode(data_uri(draw(1, (40, 40)), form).partition(",")[2])
        for keep in (3, 20, len(data) // 3):
            yield Attack(f"cut {form}", *picture(as_uri(data[:keep], form.lower()), rng))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    for other in (
        eps,
        b"%PDF-1.7\n",
        b"<svg onload='x'/>",
        b"PK\x03\x04",
        b"\0" * 64,
        b"P6 9 9 255 ",
    ):
        yield Attack(f"file {other[:4]!r}", *picture(as_uri(other), rng))


def not_base64(rng) -> Iterator[Attack]:
    head, good = data_uri(draw(1)).split(",")
    for bad in (
        "",
        "=",
        "A",
        "AAAA=A",
        "A" * 17,
        good[:-1] + "!",
        f" {good}",
        good.replace("A", "-"),
        good[:40] + "\n" + good[40:],
        good + "é",
        "%41%41",
        "\u202e" + good,
        "=" * 99,
    ):
        yield Attack(f"base64 {bad[:9]!r}", *picture(f"{head},{bad}", rng))


def not_data(rng) -> Iterator[Attack]:
    for uri in (
        "",
        "data:",
        "data:,x",
        "data:image/png,abc",
        "data:image/svg+xml;utf8,<svg/>",
        "data:text/html;base64,PGI+",
        "data:image/png;base64",
        "DATA:image/png;base64,AAAA",
        "data:image/" + "x" * 5000 + ";base64,AAAA",
        "data:image/png" + ";a=b" * 500 + ";base64,AA==",
        "javascript:alert(1)",
        "blob:x",
        "image.png",
        "\\\\host\\share\\a.png",
        "~/a.png",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
        "C:\\a.png",
        "../a.png",
    ):
        yield Attack(f"uri {uri[:30]!r}", *picture(uri, rng))


def remote(rng) -> Iterator[Attack]:
    for url in (
        "http://127.0.0.1/",
        "http://127.0.0.1:22/a.png",
        "http://localhost/metrics",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://192.168.0.1/a.png",
        "http://0/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fe80::1%25lo]/",
        "https://allowed.test@127.0.0.1/a.png",
        "https://allowed.test.evil.test/a.png",
        "https://allowed.test:99/pictures/a.png",
        "http://allowed.test/pictures/a.png",
        "https://allowed.test/pictures/../secret",
        "https://allowed.test/pictures/%2e%2e/secret",
        "https://allowed.test/pictures\\..\\x",
        "https://allowed.test/picturesque/a.png",
        "https://allowed.test/pictures/a.png",
        "https://\u0430llowed.test/pictures/a.png",
        "file:///etc/passwd",
        "ftp://allowed.test/a.png",
        "gopher://127.0.0.1:6379/_INFO",
        "http:///x",
        "HTTP://127.0.0.1/",
        "https://",
        "http://[",
        "https://allowed.test:x/",
        "http://a b/",
        "https://allowed.test/pictures/\r\nHost: x",
    ):
        yield Attack(f"url {url}", *picture(url, rng))
