"""CREM on Qwen2-VL-7B: retrieval and generation over one compression, full fine-tuning.

crem plan  --config=configs/qwen2_vl_7b.py --topology=v5e:16x16  # what it needs, before renting
crem train --config=configs/qwen2_vl_7b.py --workdir=gs://bucket/run --config.init_from=models/7b
crem train --config=configs/qwen2_vl_7b.py:lora,chips=8 --workdir=runs/lora
crem train --config=configs/qwen2_vl_7b.py:smoke --workdir=runs/smoke  # random weights, a minute

Copy this file and change what you like. The recipe it begins with is
`crem_jax/configs/qwen2_vl.py`; its options: docs/scale.md; all keys: docs/config.md.
"""

from crem_jax.configs import qwen2_vl_7b


def get_config(arg: str = ""):
    config = qwen2_vl_7b.get_config(arg)
    # Where the weights and the data are:
    # config.init_from = "models/qwen2-vl-7b"
    # config.data.sources.mmeb.path = "data/mmeb-train"
    # Parameters over 64 devices, and the batch over those and 4 more groups:
    # config.mesh = (4, 64, 1)
    return config
