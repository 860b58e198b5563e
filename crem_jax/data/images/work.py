"""How much work a picture is, told from its encoded bytes before any decoder sees them.

The pixels of a picture do not bound it: each scan of a JPEG passes over all of them, each chunk of
a PNG, segment of a JPEG or strip of a TIFF costs its own call, and the tags of EXIF may all share
one value that is copied for each. The bounds are far above what real pictures have (a progressive
JPEG has about ten scans, a PNG a chunk for every 8 KiB).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator

from crem_jax.errors import CremError

Data = bytes | mmap.mmap

MAX_SCANS = 1000
MAX_PASSES = 32
"""Times that `max_pixels` pixels may be passed over by the scans of a JPEG."""
MAX_SEGMENTS = 4096
"""Of a JPEG before its first scan; fill bytes between them count too."""
MAX_CHUNKS = 1 << 16
MAX_PROFILES = 64
"""Compressed colour profiles of a PNG, which has one."""
MAX_STRIPS = 1 << 17
"""Strips or tiles of a TIFF."""
MAX_BLOCKS = 1 << 13
"""Of extensions, before a GIF's first picture."""
MAX_ICONS = 1024
"""Pictures that an ICO lists."""
MAX_EXIF = 64
"""Segments of a JPEG's EXIF; directories of tags in an AVIF."""
MAX_TAGS = 4096
"""Of EXIF, or of a TIFF."""
SHARED = 4
"""How many times its own length the values of tags may be."""
_SMALL = 1 << 18  # bytes of values that are no work in any case

_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_EXIF, _LIST = b"Exif\0\0", b"MPF\0"
_NEXT = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # where a scan ends
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]", re.DOTALL)
_FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
_STRIPS = (273, 324)  # StripOffsets, TileOffsets


class TooMuchWork(CremError):
    """What a picture has too many of, how many, and how many may be."""


def check_work(data: Data, max_pixels: int) -> None:
    """Raises TooMuchWork for a file that is more work than `max_pixels` pixels are.

    What is damaged or of no known format passes: the decoder will say so.
    """
    for start, check in _CHECKS:
        if re.match(start, data[:16], re.DOTALL):
            try:
                check(data, max_pixels)
            except (struct.error, IndexError):
                return  # cut off


def check_exif(data: bytes) -> None:
    """Raises TooMuchWork for EXIF whose tags are."""
    at = 0
    while data.startswith(_EXIF, at):  # Pillow copies the rest for each
        at += len(_EXIF)
        _bound(at // len(_EXIF), MAX_EXIF, "beginnings of EXIF")
    _check_tags(data[at:], 0)


def _check_tags(data: Data, start: int) -> None:
    """TIFF's tags; `start` is where its header is. Their values may all be the same bytes."""
    total = 0
    for number, (tag, size, count) in enumerate(_tags(data, start), start=1):
        total += size
        _bound(number, MAX_TAGS, "tags")
        if tag in _STRIPS:
            _bound(count, MAX_STRIPS, "strips or tiles")
    _bound(total, max(_SMALL, SHARED * len(data)), "bytes in its tags, which share them")


def _bound(count: int, most: int, what: str) -> None:
    if count > most:
        raise TooMuchWork(f"is too much work to decode, {count} {what}; expected at most {most}")


def _jpeg(data: Data, max_pixels: int) -> None:
    at, segments, pixels, components, progressive = 2, 0, 0, 0, False
    exif, pictures = [], b""
    while found := _MARKER.search(data, at):
        segments += 1 + found.end() - at - 2
        _bound(segments, MAX_SEGMENTS, "segments before its first scan")
        marker, at = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker == 0xDA:
            break
        if marker in _FRAME_HEADERS:
            height, width, components = struct.unpack_from(">HHB", data, at + 3)
            pixels, progressive = max(pixels, height * width), progressive or marker % 4 == 2
        elif marker == 0xE1 and data[at + 2 : at + 2 + len(_EXIF)] == _EXIF:
            exif.append(data[at + 2 + len(_EXIF) : at + length])
            _bound(len(exif), MAX_EXIF, "segments of EXIF")
        elif marker == 0xE2 and data[at + 2 : at + 2 + len(_LIST)] == _LIST:
            pictures = data[at + 2 + len(_LIST) : at + length]
        at += length
    else:
        return
    check_exif(b"".join(exif))
    check_exif(pictures)
    if not progressive and data[at + 2] == components:
        return  # one scan has it all
    scans = 0
    while found:
        if data[found.end() - 1] == 0xDA:
            scans += 1
            _bound(scans, MAX_SCANS, "scans")
            _bound(scans * pixels, MAX_PASSES * max_pixels, f"pixels in {scans} scans")
        elif data[found.end() - 1] == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, found.end())
        found = _NEXT.search(data, found.end() + length)


def _png(data: Data, max_pixels: int) -> None:
    at, chunks, profiles = len(_PNG), 0, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks, profiles = chunks + 1, profiles + (kind == b"iCCP")
        _bound(chunks, MAX_CHUNKS, "chunks")
        _bound(profiles, MAX_PROFILES, "colour profiles")
        if kind == b"IEND":
            return
        at += 12 + length


def _gif(data: Data, max_pixels: int) -> None:
    at, blocks = 13, 0
    if data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1
    while data[at] == 0x21:
        at += 2
        while size := data[at]:
            at, blocks = at + 1 + size, blocks + 1
            _bound(blocks, MAX_BLOCKS, "blocks of extensions")
        at, blocks = at + 1, blocks + 1
        _bound(blocks, MAX_BLOCKS, "blocks of extensions")


def _tiff(data: Data, max_pixels: int) -> None:
    _check_tags(data, 0)


def _avif(data: Data, max_pixels: int) -> None:
    if data.find(_EXIF * MAX_EXIF) >= 0:
        raise TooMuchWork(f"is too much work to decode, more than {MAX_EXIF} beginnings of EXIF")
    for number, head in enumerate(_TIFF.finditer(data), start=1):  # its EXIF, wherever that is
        _bound(number, MAX_EXIF, "directories of tags")
        _check_tags(data, head.start())


def _ico(data: Data, max_pixels: int) -> None:
    (icons,) = struct.unpack_from("<H", data, 4)
    _bound(icons, MAX_ICONS, "icons")
    places = {struct.unpack_from("<II", data, 6 + 16 * i + 8) for i in range(icons)}
    for size, at in places:
        if data[at : at + len(_PNG)] == _PNG:
            _png(data[at : at + size], max_pixels)


_CHECKS = (
    (rb"\xff\xd8", _jpeg),
    (re.escape(_PNG), _png),
    (rb"GIF8", _gif),
    (_TIFF.pattern, _tiff),
    (rb"....ftyp", _avif),
    (rb"\0\0[\1\2]\0", _ico),
)


def _tags(data: Data, start: int) -> Iterator[tuple[int, int, int]]:
    """(tag, bytes, number of values) of TIFF's first directory, as far as it can be read."""
    order = "<" if data[start : start + 1] == b"I" else ">"
    big = b"+" in data[start + 2 : start + 4]
    entry = struct.Struct(order + ("HHQQ" if big else "HHII"))
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, start + (8 if big else 4))
        at += start
        (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        at += 8 if big else 2
        for i in range(tags):
            tag, kind, count, place = entry.unpack_from(data, at + i * entry.size)
            size = count * _TYPE_BYTES.get(kind, 0)
            if size > (8 if big else 4) and start + place + size > len(data):
                return  # cut off: nothing more is read
            yield tag, size, count
    except struct.error:
        return
