"""The name table between crem_jax's parameters and the tensors of Hugging Face's Qwen-VL models.

Each row is invertible. `{layer}` in a Hugging Face name stands for the leading axis of a stacked
parameter. A model uses the rows of the parameters that its config defines: Qwen2-VL and Qwen2.5-VL
share all but the MLP and the norms' biases of the vision tower. Every tensor on either side belongs
to exactly one row; an error lists all that are left over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from crem_jax import lazy_array, trees
from crem_jax.config import ModelConfig
from crem_jax.convert.transforms import Flat, Linear, Patch, Same, Shape, copy
from crem_jax.errors import CremError
from crem_jax.lazy_array import Index, LazyArray
from crem_jax.model import crem


class WeightsError(CremError):
    """Weights cannot be read or do not fit the config; the message names the file and tensors."""


def _pair(path: str, hf_name: str, contract: int = 1) -> list[tuple[str, str, Same]]:
    return [
        (f"{path}/kernel", f"{hf_name}.weight", Linear(contract)),
        (f"{path}/bias", f"{hf_name}.bias", Flat()),
    ]


def _norm(path: str, hf_name: str) -> list[tuple[str, str, Same]]:
    return [
        (f"{path}/scale", f"{hf_name}.weight", Same()),
        (f"{path}/bias", f"{hf_name}.bias", Same()),
    ]


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_L, _B = "model.layers.{layer}", "visual.blocks.{layer}"

ROWS: tuple[tuple[str, str, Same], ...] = (
    ("backbone/embedding", EMBEDDING, Same()),
    ("backbone/head", HEAD, Same()),
    ("backbone/norm/scale", "model.norm.weight", Same()),
    ("backbone/layers/attention_norm/scale", f"{_L}.input_layernorm.weight", Same()),
    ("backbone/layers/mlp_norm/scale", f"{_L}.post_attention_layernorm.weight", Same()),
    *_pair("backbone/layers/q", f"{_L}.self_attn.q_proj"),
    *_pair("backbone/layers/k", f"{_L}.self_attn.k_proj"),
    *_pair("backbone/layers/v", f"{_L}.self_attn.v_proj"),
    ("backbone/layers/o/kernel", f"{_L}.self_attn.o_proj.weight", Linear(2)),
    ("backbone/layers/mlp/gate/kernel", f"{_L}.mlp.gate_proj.weight", Linear()),
    ("backbone/layers/mlp/up/kernel", f"{_L}.mlp.up_proj.weight", Linear()),
    ("backbone/layers/mlp/down/kernel", f"{_L}.mlp.down_proj.weight", Linear()),
    ("vision/patch_kernel", "visual.patch_embed.proj.weight", Patch()),
    *_norm("vision/blocks/norm1", f"{_B}.norm1"),
    *_norm("vision/blocks/norm2", f"{_B}.norm2"),
    *_pair("vision/blocks/qkv", f"{_B}.attn.qkv"),
    *_pair("vision/blocks/proj", f"{_B}.attn.proj", contract=2),
    *_pair("vision/blocks/fc1", f"{_B}.mlp.fc1"),
    *_pair("vision/blocks/fc2", f"{_B}.mlp.fc2"),
    *_pair("vision/blocks/mlp/gate", f"{_B}.mlp.gate_proj"),
    *_pair("vision/blocks/mlp/up", f"{_B}.mlp.up_proj"),
    *_pair("vision/blocks/mlp/down", f"{_B}.mlp.down_proj"),
    *_norm("vision/merge_norm", "visual.merger.ln_q"),
    *_pair("vision/merge_fc1", "visual.merger.mlp.0"),
    *_pair("vision/merge_fc2", "visual.merger.mlp.2"),
)


_STYLES = (("model.visual.", "visual."), ("model.language_model.", "model."))


def canonical(name: str) -> str:
    """A tensor's name as it is written to files; also accepts transformers' in-memory names."""
    for long, short in _STYLES:
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def in_memory(name: str) -> str:
    """Inverse of `canonical`: a tensor's name in transformers' own modules."""
    for long, short in _STYLES:
        if name.startswith(short):
            return long + name.removeprefix(short)
    return name


@functools.cache
def crem_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Parameter path -> shape, for a whole model."""
    leaves = trees.flatten(nn.meta.unbox(crem.abstract(config)))
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def hf_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Hugging Face tensor name -> shape, for a whole model."""
    shapes = crem_shapes(config)
    return {
        name: transform.hf_shape(shape)
        for path, names, transform, shape in _expanded(shapes)
        for name in names
    }


def from_hf(
    config: ModelConfig,
    tensors: Mapping[str, LazyArray],
    *,
    source: str = "the weights",
    locate: Callable[[str], str] | None = None,
) -> crem.Params:
    """Converts Hugging Face tensors to parameters, LazyArrays of their stored type (float32 for
    float16).

    Args:
      tensors: all tensors of the model by name, in either style of names.
      source: what errors call the weights. locate: tensor name -> its file, for errors.

    Raises:
      WeightsError: tensors are missing, left over, of the wrong shape, or of another type than
        float32, bfloat16 and float16; the message lists them all.
    """
    names: dict[str, str] = {}
    for name in tensors:
        twin = names.setdefault(canonical(name), name)
        if twin != name:
            raise WeightsError(f"{source}: {twin} and {name} are the same tensor; expected one")
    expected = hf_shapes(config)
    got = {short: tensors[name].shape for short, name in names.items()}
    tied_head = HEAD in got and HEAD not in expected
    if tied_head:
        del got[HEAD]
    problems = trees.differences(got, expected)
    if problems:
        wrong = [n for n in got if n in expected and got[n] != expected[n]]
        files = sorted({locate(names[n]) for n in wrong}) if locate else []
        where = f"{source} ({', '.join(files)})" if files else source
        raise WeightsError(f"{where}: tensors do not fit config.json; {'; '.join(problems)}")
    foreign = [
        f"{name} is {tensors[names[name]].dtype}"
        for name in expected
        if tensors[names[name]].dtype not in _READABLE
    ]
    if foreign:
        raise WeightsError(f"{source}: {', '.join(foreign)}; expected float32, bfloat16 or float16")
    if tied_head:
        _check_tied(source, tensors[names[HEAD]], tensors[names[EMBEDDING]])
    params = {
        path: _parameter(
            [tensors[names[name]] for name in hf_names], transform, shape, _is_stacked(path)
        )
        for path, hf_names, transform, shape in _expanded(crem_shapes(config))
    }
    return trees.unflatten(params)


def to_hf(config: ModelConfig, params: crem.Params) -> dict[str, LazyArray]:
    """Converts parameters (arrays of any kind) to Hugging Face tensors by name.

    Raises:
      WeightsError: the parameters do not fit the config; the message lists all differences.
    """
    leaves = {path: lazy_array.of(leaf) for path, leaf in trees.flatten(params).items()}
    expected = crem_shapes(config)
    problems = trees.differences({path: leaf.shape for path, leaf in leaves.items()}, expected)
    if problems:
        raise WeightsError(f"the parameters do not fit the config; {'; '.join(problems)}")
    return {
        name: _tensor(leaves[path], layer if _is_stacked(path) else None, transform, shape)
        for path, names, transform, shape in _expanded(expected)
        for layer, name in enumerate(names)
    }


def _parameter(parts: list[LazyArray], transform: Same, shape: Shape, stacked: bool) -> LazyArray:
    """The parameter whose layers are `parts`, which should read as views, as memory maps do."""
    types = (part.dtype for part in parts)
    dtype = np.dtype(functools.reduce(jnp.promote_types, types, jnp.bfloat16))

    def layer(part: LazyArray, index: Index, out: np.ndarray) -> None:
        copy(transform.to_crem(part[...], shape)[index], out)

    def read(index: Index) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in index], dtype)
        if not stacked:
            layer(parts[0], index, out)
        for i in range(len(out)) if stacked else ():
            layer(parts[index[0].start + i], index[1:], out[i])
        return out

    return LazyArray((len(parts), *shape) if stacked else shape, dtype, read)


def _tensor(leaf: LazyArray, layer: int | None, transform: Same, shape: Shape) -> LazyArray:
    """The tensor of one layer of a parameter; layer None if the parameter is not stacked."""
    ahead = () if layer is None else (slice(layer, layer + 1),)

    def read(index: Index) -> np.ndarray:
        if type(transform) is Same:
            return leaf[(*ahead, *index)].reshape([s.stop - s.start for s in index])
        view = transform.to_hf(leaf[ahead or ...].reshape(shape))[index]
        return copy(view, np.empty(view.shape, view.dtype))

    return LazyArray(transform.hf_shape(shape), leaf.dtype, read)


_READABLE = tuple(np.dtype(t) for t in (np.float32, jnp.bfloat16, np.float16))
HF_NAMES = {path: hf_name for path, hf_name, _ in ROWS}


def _expanded(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, list[str], Same, Shape]]:
    """(path, Hugging Face names, transform, shape of one layer) of each row that applies."""
    unknown = sorted(set(shapes) - set(HF_NAMES))
    if unknown:
        raise WeightsError(f"the name table has no row for {', '.join(unknown)}")
    for path, hf_name, transform in ROWS:
        if path not in shapes:
            continue
        shape = shapes[path]
        if "{layer}" in hf_name:
            names = [hf_name.format(layer=layer) for layer in range(shape[0])]
            yield path, names, transform, shape[1:]
        else:
            yield path, [hf_name], transform, shape


def _is_stacked(path: str) -> bool:
    return "{layer}" in HF_NAMES[path]


def _check_tied(source: str, head: LazyArray, embedding: LazyArray) -> None:
    if head.shape != embedding.shape or not lazy_array.same(head, embedding):
        raise WeightsError(
            f"{source}: config.json ties the head to the embedding, yet {HEAD} differs from "
            f"{EMBEDDING}; expected equal tensors or tie_word_embeddings false"
        )
