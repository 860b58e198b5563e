"""Pictures that are more work than their pixels are refused before a decoder sees them."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from crem_jax.data.images import work
from crem_jax.data.images.decode import PictureError, open_picture, peek
from tests.support import decoder_bombs as bombs

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def refusal(data: bytes, **options) -> str:
    """What is said of a bomb, as bytes and as a file alike; a look at its header says the same."""
    said = set()
    for look in (open_picture, peek):
        with pytest.raises(PictureError) as caught:
            look(data, **options)
        said.add(str(caught.value))
    assert len(said) == 1
    return said.pop()


@pytest.mark.parametrize(
    "name, most",
    [
        ("scans", work.MAX_SCANS),
        ("comments", work.MAX_SEGMENTS),
        ("profiles", work.MAX_SEGMENTS),
        ("frames' headers", work.MAX_SEGMENTS),
        ("fill", work.MAX_SEGMENTS),
        ("chunks", work.MAX_CHUNKS),
        ("pieces", work.MAX_CHUNKS),
        ("animation", work.MAX_CHUNKS),
        ("strips", work.MAX_STRIPS),
        ("comment", work.MAX_BLOCKS),
        ("extensions", work.MAX_BLOCKS),
        ("icons", work.MAX_ICONS),
    ],
)
def test_a_bomb_is_refused_with_its_count_and_the_bound(name, most):
    said = re.search(
        r"too much work to decode, (\d+) .*; expected at most (\d+)$",
        refusal(bombs.BOMBS[name](most + 1)),
    )
    assert int(said[1]) > int(said[2]) == most


@pytest.mark.parametrize("name", sorted({*bombs.BOMBS} - {"frames' headers"}))
def test_a_few_of_what_makes_a_bomb_are_a_picture(name):
    assert open_picture(bombs.BOMBS[name](30)).width >= 1


def test_scans_are_counted_times_pixels():
    data = bombs.scans(work.MAX_PASSES, (100, 80))
    assert open_picture(data).size == (100, 80)
    said = refusal(data, max_pixels=100 * 80)
    assert said.endswith(
        f"{33 * 8000} pixels in 33 scans; expected at most {work.MAX_PASSES * 8000}"
    )


@pytest.mark.parametrize("form", ["JPEG", "TIFF", "AVIF"])
def test_tags_that_share_a_value_are_refused_where_opening_reads_them(form):
    data = bombs.directory(60, 60_000) if form == "TIFF" else bombs.exif(form, 60, 60_000)
    limit = max(1 << 18, 4 * len(data))
    assert "3600000 bytes in its tags, which share them; expected at most" in refusal(data)
    assert limit < 3_600_000


@pytest.mark.parametrize(
    "data", [bombs.exif("PNG", 60, 60_000), bombs.exif("WEBP", 60, 60_000), bombs.beginnings(1000)]
)
def test_tags_that_nothing_needs_are_not_read_if_they_are_too_much_work(data, monkeypatch):
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("EXIF is read"))
    assert open_picture(data).size == bombs.SMALL.size


def test_exif_in_many_segments_or_beginnings_is_refused():
    assert "65 segments of EXIF" in refusal(bombs.segments(66, 0xE1, b"Exif\0\0"))
    assert "65 beginnings of EXIF" in refusal(bombs.segments(1, 0xE1, b"Exif\0\0" * 99))
    avif = bombs.encoded(bombs.SMALL, "AVIF", exif=b"Exif\0\0" * 99 + bombs.directory(1, 9))
    assert "beginnings of EXIF" in refusal(avif)


def test_profiles_that_are_inflated_again_and_again_are_refused():
    assert "65 colour profiles; expected at most 64" in refusal(bombs.inflated("iCCP", 70, 999))
    assert "too large" in refusal(bombs.inflated("zTXt", 1, 2 << 20))


def test_a_path_is_refused_as_its_bytes_are(tmp_path):
    path = tmp_path / "bomb.jpg"
    path.write_bytes(bombs.segments(5000))
    assert refusal(path).startswith(f"{path}: is too much work to decode, ")


@pytest.mark.parametrize("form", FORMATS)
def test_ordinary_pictures_are_far_from_every_bound(form, rng):
    pixels = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "A camera" * 100
    for options in ({}, {"progressive": True} if form == "JPEG" else {"exif": exif}):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, form, **({} if form in ("BMP", "GIF") else options))
        work.check_work(out.getvalue(), 400 * 300)


def test_whatever_a_file_holds_the_look_at_it_ends(rng):
    """Flipped bytes of bombs and pictures: refused or not, never another error."""
    seeds = [make(40) for make in bombs.BOMBS.values()]
    seeds += [bombs.encoded(bombs.SMALL, form) for form in FORMATS]
    seeds += [bombs.directory(5, 40), bombs.exif("JPEG", 5, 40)]
    for _ in range(400):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for at in rng.integers(0, min(len(data), 300), rng.integers(1, 6)):
            data[at] = rng.integers(256)
        with contextlib.suppress(work.TooMuchWork):
            work.check_work(bytes(data[: rng.integers(1, len(data) + 1)]), 10_000)
