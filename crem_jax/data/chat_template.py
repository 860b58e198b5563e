"""The chat template that is saved with a model's tokenizer."""

from __future__ import annotations

from importlib import resources

from crem_jax.config import ModelConfig


def chat_template(config: ModelConfig) -> str:
    """Qwen2-VL's template with the `chorus` switch, for this model's K and system prompt."""
    text = resources.files("crem_jax").joinpath("assets/chat_template.jinja").read_text("utf-8")
    system = config.system_prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return text.replace("@NUM_CHORUS@", str(config.num_chorus)).replace("@SYSTEM@", system)
