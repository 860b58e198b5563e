"""Draws attention maps as heat-maps over their picture, one by one or on a contact sheet."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crem_jax.data.records import Picture
from crem_jax.inference.attention_maps import AttentionMaps
from crem_jax.report.figures import FAINT, INK, new_figure, save_figure, thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 10
_WIDE, _GAP, _LABEL, _HEADING, _LETTER = 1.3, 0.08, 0.2, 0.3, 0.075  # of the sheet, in inches
_SIDE = 384  # pixels of an overlay's longer side
_FIGURES = ("on_picture", "entropy", "coverage", "overlap")


def overlay(picture: Picture, share: np.ndarray) -> Image.Image:
    """The picture in pale grey under a heat-map [rows, columns], scaled to its largest value."""
    from matplotlib import colormaps

    image = thumbnail(picture)
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    size = (width, height)
    image = image.resize(size, Image.Resampling.BICUBIC)
    shares = Image.fromarray(share.astype(np.float32) / max(float(share.max()), 1e-12))
    heat = np.clip(np.asarray(shares.resize(size, Image.Resampling.BICUBIC)), 0, 1)[..., None]
    pale = 0.6 * np.asarray(image.convert("L").convert("RGB"), np.float32) + 0.4 * 255
    colour = 255 * np.asarray(colormaps["inferno"](heat[..., 0]), np.float32)[..., :3]
    mixed = pale + 0.9 * heat * (colour - pale)
    return Image.fromarray(mixed.astype(np.uint8))


def contact_sheet(
    picture: Picture, by_model: Mapping[str, AttentionMaps], path: str | os.PathLike
) -> None:
    """Draws the picture, and for each model the mean of its tokens' maps and each single map.

    Args:
      by_model: maps by model name. path: the PNG file to write.
    """
    lines: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for name, maps in by_model.items():
        shares = maps.shares
        cells = [("picture", thumbnail(picture)), ("all", overlay(picture, shares.mean(0)))]
        cells += [(str(i), overlay(picture, share)) for i, share in enumerate(shares, 1)]
        heading = f"{name}   {_in_words(maps.figures())}"
        for first in range(0, len(cells), _COLUMNS):
            lines.append(("" if first else heading, cells[first : first + _COLUMNS]))
    image = thumbnail(picture)
    tall = _WIDE * image.height / image.width
    width = _GAP + max(len(cells) for _, cells in lines) * (_WIDE + _GAP)
    width = max(width, _GAP + _LETTER * max(len(heading) for heading, _ in lines))
    height = sum(tall + _LABEL + _HEADING * bool(heading) for heading, _ in lines) + _GAP
    figure, top = new_figure(width, height, dpi=120), height
    figure.set_layout_engine("none")
    for heading, cells in lines:
        if heading:
            top -= _HEADING
            x, y = _GAP / width, (top + _GAP) / height
            figure.text(x, y, heading, fontsize=9, color=INK, parse_math=False, va="bottom")
        top -= tall
        for column, (label, shown) in enumerate(cells):
            left = _GAP + column * (_WIDE + _GAP)
            axes = figure.add_axes((left / width, top / height, _WIDE / width, tall / height))
            _draw(axes, label, shown)
        top -= _LABEL
    save_figure(figure, path)


def _draw(axes: Axes, label: str, shown: Image.Image) -> None:
    axes.imshow(shown, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color="#d8d8d8", linewidth=0.6)
    axes.set_xlabel(label, fontsize=7, color=FAINT, labelpad=2)


def save_overlays(picture: Picture, maps: AttentionMaps, folder: Path) -> list[Path]:
    """Writes all.png (the mean) and token-01.png … to a folder, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    width = max(2, int(math.log10(len(maps.maps))) + 1)
    named = {"all": maps.shares.mean(0)}
    named |= {f"token-{i:0{width}d}": share for i, share in enumerate(maps.shares, 1)}
    for name, share in named.items():
        overlay(picture, share).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in named]


def _in_words(figures: Mapping[str, Any]) -> str:
    words = ((name.replace("_", " "), figures[name]) for name in _FIGURES)
    return "   ".join(f"{name} {value:.2f}" for name, value in words if value is not None)
