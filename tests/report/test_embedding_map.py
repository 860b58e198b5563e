"""The map of a library: the plane of most variance, and thumbnails in it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from crem_jax import library
from crem_jax.library.entry import Entry, LibraryInfo
from crem_jax.report.embedding_map import draw_map, projection
from tests.support.cli_runner import crem

COLOURS = ((255, 0, 0), (0, 0, 255))


@pytest.fixture(scope="module")
def two_clusters(tmp_path_factory):
    """Forty entries about two directions, red and blue, one of them without a picture."""
    rng = np.random.default_rng(0)
    info = LibraryInfo("f", "toy", num_chorus=1, dim=8, prefixes=(1,), memory="none", memory_k=1)
    entries = []
    for i in range(40):
        vector = np.zeros(8)
        vector[i % 2] = 1
        vector += 0.05 * rng.standard_normal(8)
        file = io.BytesIO()
        Image.new("RGB", (20, 10), COLOURS[i % 2]).save(file, "PNG")
        entries.append(
            Entry(
                id=f"{i}",
                vectors=(vector / np.linalg.norm(vector)).astype(np.float16)[None],
                thumbnail=file.getvalue() if i else b"",
                text="words",
            )
        )
    place = tmp_path_factory.mktemp("map") / "two.crem"
    library.create(place, info).put(entries)
    return place, entries


def test_the_plane_is_that_of_the_principal_components(two_clusters):
    place, entries = two_clusters
    ids, places, variance = projection(library.open(place))
    by_id = {entry.id: entry.vectors[0].astype(np.float64) for entry in entries}
    vectors = np.stack([by_id[name] for name in ids])
    centred = vectors - vectors.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(u[:, :2] * s[:2]), atol=1e-5)
    assert variance == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-6)


def test_alike_lies_together_and_every_cell_shows_one(two_clusters, capsys, tmp_path):
    place, _ = two_clusters
    out = tmp_path / "map.png"
    found = crem(capsys, "library", "map", place, "--out", out, "--cells", 6, "--json").json
    assert found["entries"] == 40 and 2 < found["drawn"] <= 36 and found["variance"] > 0.8
    pixels = np.asarray(Image.open(out)).reshape(6, 64, 6, 64, 3)[:, 32, :, 32]
    red, blue = (np.argwhere((pixels == colour).all(-1))[:, 1] for colour in COLOURS)
    assert len(red) and len(blue)
    assert red.max() < blue.min() or blue.max() < red.min()
    assert "of the variance" in crem(capsys, "library", "map", place, "--out", out).out


def test_an_empty_library_is_no_map(tmp_path):
    info = LibraryInfo("f", "toy", num_chorus=1, dim=8, prefixes=(1,), memory="none", memory_k=1)
    with pytest.raises(library.LibraryError, match="nothing to draw"):
        draw_map(library.create(tmp_path / "none.crem", info), tmp_path / "map.png")
