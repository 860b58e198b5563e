"""CREM on Qwen2-VL-7B: as `qwen2_vl_2b.py`, with a smaller learning rate. See `common.py`."""

from common import recipe
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    return recipe("7b", arg, lr=1e-5)
