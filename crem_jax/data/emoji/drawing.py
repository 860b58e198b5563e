"""Canvas work shared by the emoji sources. Canvases are float32 [H, W, 3] in 0..255 while drawn."""

from __future__ import annotations

import numpy as np


def random_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 [size, size, 3] in 0..255: white, one colour (often light) or a gradient of two."""
    kind = rng.random()
    if kind < 0.3:
        return np.full((size, size, 3), 255, np.float32)
    low = 190.0 if kind < 0.75 else 0.0
    first, second = rng.uniform(low, 255, (2, 3)).astype(np.float32)
    if rng.random() < 0.7:
        return np.broadcast_to(first, (size, size, 3))
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    line = first + (second - first) * ramp[:, None]
    along_x = rng.random() < 0.5
    return np.broadcast_to(line[None] if along_x else line[:, None], (size, size, 3))


def colour_gain(rng: np.random.Generator, common: float, channel: float) -> np.ndarray:
    """float32 [3] gain: one brightness for all channels and a little of its own for each."""
    gain = rng.uniform(1 - common, 1 + common) * rng.uniform(1 - channel, 1 + channel, 3)
    return gain.astype(np.float32)


def paste(canvas: np.ndarray, sprite: np.ndarray, top: int, left: int) -> None:
    """Lays a premultiplied sprite ([h, w, 4], 0..255) on a float32 [H, W, 3] canvas, in place."""
    height, width = sprite.shape[:2]
    window = canvas[top : top + height, left : left + width]
    window *= 1 - sprite[..., 3:] * np.float32(1 / 255)
    window += sprite[..., :3]


def to_pixels(canvas: np.ndarray) -> np.ndarray:
    """The finished canvas as uint8, rounded and clipped."""
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)
