"""CREM on Qwen2-VL-2B: retrieval and generation over one compression, full fine-tuning.

Where the paper (arXiv 2602.19091) is silent, the settings of VLM2Vec-V2. See `common.py`.
"""

from common import recipe
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return recipe("2b", arg, lr=2e-5)
