"""CREM on Qwen2-VL-7B: as `qwen2_vl_2b.py`, with a smaller learning rate. See `qwen2_vl.py`."""

from ml_collections import ConfigDict

from crem_jax.configs.qwen2_vl import recipe


def get_config(arg: str = "") -> ConfigDict:
    return recipe("7b", arg, lr=1e-5)
