"""Makes an exported directory a sentence-transformers model that needs no custom code.

Transformer -> WordWeights (chorus tokens 1, all others 0) -> Pooling (mean) -> Normalize computes
the L2-normalised mean of the chorus states, the retrieval embedding (arXiv 2602.19091, section
3.1).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from crem_jax.config import ModelConfig
from crem_jax.convert.chorus import chorus_tokens
from crem_jax.convert.safetensors_io import write_json

MODULES = (
    ("", "base.modules.transformer.Transformer"),
    ("1_WordWeights", "sentence_transformer.modules.word_weights.WordWeights"),
    ("2_Pooling", "sentence_transformer.modules.pooling.Pooling"),
    ("3_Normalize", "base.modules.normalize.Normalize"),
)
REQUIREMENTS = {"sentence_transformers": ">=6.2", "transformers": ">=5.23"}


def write_sentence_transformers(
    directory: Path, config: ModelConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Adds the files of a sentence-transformers model to a directory that transformers opens.

    Args:
      directory: an exported model; `image_token` is added to its tokenizer_config.json.
      config: a model with chorus tokens.
      tokenizer: the directory's tokenizer.
    """
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
            for i, (path, kind) in enumerate(MODULES)
        ],
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            "requirements": REQUIREMENTS,
        },
        "sentence_bert_config.json": _transformer(),
        "processor_config.json": _processor(),
        "1_WordWeights/config.json": _word_weights(config, tokenizer),
        "2_Pooling/config.json": {
            "embedding_dimension": config.text.hidden_size,
            "pooling_mode": "mean",
            "include_prompt": True,
        },
        "3_Normalize/config.json": {},
    }
    for name, values in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_json(directory / name, values)
    _name_image_token(directory / "tokenizer_config.json")


def _transformer() -> dict[str, Any]:
    output = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": output,
            "image": output,
            "image+text": output,
            "message": {**output, "format": "structured"},
        },
        "module_output_name": "token_embeddings",
        # Special tokens in user text stay plain text, as in `Prompter`.
        "processing_kwargs": {"chat_template": {"chorus": True, "sanitize_control_tokens": True}},
        # torchvision rounds differently from Pillow, with which training resized images.
        "processor_kwargs": {"backend": "pil"},
        # Packing texts into one row would make their M-RoPE positions run on.
        "unpad_inputs": False,
    }


def _processor() -> dict[str, Any]:
    """The config of the processor that AutoProcessor makes, of a tokenizer and an image processor.

    Qwen2-VL's own processor also handles videos, which requires torchvision even for texts. This
    one, of another model in transformers, is its image half: it repeats the image token once per
    vision token.
    """
    return {"processor_class": "PaddleOCRVLProcessor"}


def _word_weights(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {row: name for name, row in tokenizer.get_vocab().items()}
    return {
        "vocab": [names.get(row, "") for row in range(max(names) + 1)],
        "word_weights": dict.fromkeys(chorus_tokens(config.num_chorus), 1.0),
        "unknown_word_weight": 0.0,
    }


def _name_image_token(path: Path) -> None:
    values = json.loads(path.read_text("utf-8"))
    write_json(path, {**values, "image_token": "<|image_pad|>"})
