"""Attention maps of a model's chorus tokens over an image (the paper's Figure 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from crem_jax.data.records import Item
from crem_jax.errors import CremError
from crem_jax.inference.batches import context_batches
from crem_jax.inference.model import Model
from crem_jax.model import crem
from crem_jax.model.chorus_attention import chorus_attention


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of the chorus tokens to one image.

    Attributes:
      maps: float32 [K, rows, columns], the attention of each chorus token to each vision token,
        averaged over heads and layers. A map sums to less than 1: the rest goes to text and chorus.
    """

    maps: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """float64 [K, rows, columns]: the maps, each summing to 1."""
        maps = self.maps.astype(np.float64)
        return maps / np.maximum(maps.sum((1, 2), keepdims=True), 1e-12)

    def figures(self) -> dict[str, Any]:
        """Summary statistics, each from 0 to 1.

        Returns:
          on_picture: the share of attention on the image, averaged over the tokens.
          entropy: entropy of a token's map relative to a uniform one (1), averaged over the tokens.
          coverage: the share of the image that the tokens attend to together,
            exp(entropy of their mean map) / number of vision tokens.
          overlap: the overlap of two tokens' maps (the sum of the smaller shares), averaged over
            pairs; 1 for identical maps, None for a single token.
          by_token: entropy and on_picture of each token, as lists.
        """
        shares = self.shares.reshape(len(self.maps), -1)
        entropy = _entropy(shares) / max(np.log(shares.shape[1]), 1e-12)
        on_picture = self.maps.sum((1, 2), dtype=np.float64)
        pairs = np.triu_indices(len(shares), 1)
        common = np.minimum(shares[pairs[0]], shares[pairs[1]]).sum(1)
        return {
            "on_picture": float(on_picture.mean()),
            "entropy": float(entropy.mean()),
            "coverage": float(np.exp(_entropy(shares.mean(0))) / shares.shape[1]),
            "overlap": float(common.mean()) if len(common) else None,
            "by_token": {"entropy": entropy.tolist(), "on_picture": on_picture.tolist()},
        }


def attention_maps(model: Model, item: Any, layers: Sequence[int] | None = None) -> AttentionMaps:
    """The chorus tokens' attention maps for an item with one image.

    Args:
      item: as for `Model.encode`. layers: indices of the layers to average over; None is all.

    Raises:
      CremError: the model has no chorus tokens, a layer does not exist, or the item does not have
        exactly one image.
    """
    item = Item.of(item)
    if not model.config.num_chorus:
        raise CremError("this model has no chorus tokens to look with (a plain backbone)")
    if len(item.images) != 1:
        raise CremError(f"the item has {len(item.images)} pictures; expected one to look at")
    count = model.config.text.num_layers
    chosen = list(range(count) if layers is None else layers)
    for layer in chosen:
        if not 0 <= layer < count:
            raise CremError(f"layer {layer} is not in 0..{count - 1}")
    (grid,) = model.runner.prompter.draft(item).grids
    row = model.runner.prepare(item)
    ((_, context),) = context_batches([row], model.config)
    memory = crem.compress(model.config, model.params, context)
    attention = chorus_attention(model.config, model.params, context, memory)
    by_slot = np.asarray(attention)[chosen, 0].mean((0, 1))
    slots = np.flatnonzero(row.tokens == model.config.image_token_id)
    return AttentionMaps(by_slot[:, slots].reshape(-1, *grid))


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy in nats of distributions over the last axis."""
    return -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=-1)
