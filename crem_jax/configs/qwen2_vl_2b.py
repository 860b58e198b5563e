"""CREM on Qwen2-VL-2B: retrieval and generation over one compression, full fine-tuning.

Settings that the paper (arXiv 2602.19091) does not give are those of VLM2Vec-V2. See `qwen2_vl.py`.
"""

from ml_collections import ConfigDict

from crem_jax.configs.qwen2_vl import recipe


def get_config(arg: str = "") -> ConfigDict:
    return recipe("2b", arg, lr=2e-5)
