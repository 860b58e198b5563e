"""The embedded default: CREM from scratch on emoji pictures and scenes, on a laptop CPU.

crem train --config=configs/emoji.py --workdir=runs/emoji
crem train --config=configs/emoji.py:smoke --workdir=runs/smoke        # under a minute
crem train --config=configs/emoji.py:arm=retrieval_only --workdir=…    # an ablation arm
crem train --config=configs/emoji.py:chorus=16 --workdir=…             # 16 chorus tokens

Copy this file and change what you like. The recipe it begins with is `crem_jax/configs/emoji.py`;
all keys, with what they mean: docs/config.md.
"""

from crem_jax.configs import emoji


def get_config(arg: str = ""):
    config = emoji.get_config(arg)
    # A few more steps at a smaller rate:
    # config.steps = 2000
    # config.optim.lr = config.optim.adam_lr = 2e-3
    # A wider model:
    # config.model.text.update(hidden_size=192, intermediate_size=384, mrope_section=(4, 10, 10))
    return config
