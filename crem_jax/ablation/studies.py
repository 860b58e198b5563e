"""The tables and studies by name.

The published figures are the paper's Tables 3 and 4 (arXiv 2602.19091), of Qwen2-VL-2B on MMEB and
on six comprehension sets: another model and other data than what is trained here, so that their
order is compared and not their size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from crem_jax.ablation.study import Row, Setting, Study

CREM = Setting("arm=crem")


def _arm(label: str, arm: str, mmeb: float, native: float, compressed: float | None = None) -> Row:
    published = {"mmeb": mmeb, "native": native}
    if compressed is not None:
        published["compressed"] = compressed
    return Row(label, Setting(f"arm={arm}"), published=published)


TABLE_3 = Study(
    "3",
    "Table 3: what makes CREM",
    (
        _arm("retrieval only", "retrieval_only", 62.3, 43.4),
        _arm("generation only", "generation_only", 2.9, 53.2),
        _arm("joint, no compression", "joint_no_compression", 66.1, 47.2),
        _arm("prompt only", "prompt_only", 21.1, 53.0, 43.9),
        _arm("training strategy only", "strategy_only", 65.5, 52.8),
        _arm("CREM", "crem", 66.7, 53.1, 44.2),
    ),
)

_TABLE_4 = {  # K: MMEB, native, compressed, cache
    1: (65.6, 51.9, 38.2, 0.07),
    4: (66.1, 52.3, 41.7, 0.28),
    8: (66.5, 52.5, 43.1, 0.56),
    16: (66.7, 53.1, 44.2, 1.12),
    32: (66.7, 52.9, 44.6, 2.24),
    64: (66.6, 53.1, 46.2, 4.48),
}
_COUNTS = tuple(_TABLE_4)
_COLUMNS = ("mmeb", "native", "compressed", "cache")


def _trained_with(k: int) -> Row:
    changes = () if k == 1 else ("loss.elastic=0.0",)  # of one token nothing can be cut off
    setting = Setting(f"arm=crem,chorus={k}", changes)
    published = dict(zip(_COLUMNS, _TABLE_4.get(k, ()), strict=False))
    return Row(f"K = {k}", setting, x=str(k), series="trained with K", published=published)


def _first(k: int, of: int) -> Row:
    setting = Setting(f"arm=crem,chorus={of}")
    return Row(f"first {k} of {of}", setting, k=k, x=str(k), series="one elastic model")


TABLE_4 = Study(
    "4",
    "Table 4: how many chorus tokens",
    (
        Row(
            "EOS",
            Setting("arm=retrieval_only"),
            x="EOS",
            series="trained with K",
            published={"mmeb": 62.3, "native": 43.4, "cache": 100.0},
        ),
        *(_trained_with(k) for k in _COUNTS),
        *(_first(k, of=_COUNTS[-1]) for k in _COUNTS),
    ),
    judged="series",
)


def _chorus() -> Study:
    """Elastic k where Table 4 has no time for it: fewer tokens, so that steps are cheap."""
    counts = (1, 2, 4, 8)
    rows = (
        *(dataclasses.replace(_trained_with(k), published={}) for k in counts),
        *(_first(k, of=counts[-1]) for k in counts),
    )
    title = f"One elastic model of {counts[-1]} chorus tokens, and models trained with K"
    assumes: dict[str, float | str] = {"loss.elastic": 0.5, "loss.elastic_k": "halves"}
    return Study("chorus", title, rows, judged="series", assumes=assumes)


def _of_key(name: str, title: str, key: str, values: Sequence, default) -> Study:
    """A study of one key; its default value needs no change, and so shares CREM's runs."""
    rows = [
        Row(str(value), CREM if value == default else Setting("arm=crem", (f"{key}={value}",)))
        for value in values
    ]
    return Study(name, title, tuple(rows), assumes={key: default})


def _elastic() -> Study:
    settings = {"never": Setting("arm=crem", ("loss.elastic=0.0",))}
    for share, word in (("", "half"), ("loss.elastic=1.0", "always")):
        for how in ("uniform", "halves", "short"):
            changes = (share, f"loss.elastic_k={how}" if how != "halves" else "")
            settings[f"{word}, {how}"] = Setting("arm=crem", tuple(filter(None, changes)))
    rows = [
        Row(f"{name}, k = {k}", setting, k=k, x=str(k), series=name)
        for name, setting in settings.items()
        for k in (1, 2, 4, 8)
    ]
    title = "How often and how the chorus is truncated in training"
    assumes: dict[str, float | str] = {"loss.elastic": 0.5, "loss.elastic_k": "halves"}
    return Study("elastic", title, tuple(rows), judged="series", assumes=assumes)


_SIGNS = Setting("arm=crem,chorus=16", ("data.sources.scenes.text=0.5",))
_SYSTEM = Setting("arm=crem,system")

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        _chorus(),
        _elastic(),
        _of_key("p_compressed", "p(z = 1)", "loss.p_compressed", (0.0, 0.25, 0.5, 0.75, 1.0), 0.5),
        _of_key("generation", "α_g, with α_r = 1", "loss.generation", (0.5, 1.0, 1.5, 3.0), 1.5),
        _of_key("temperature", "InfoNCE's τ", "model.temperature", (0.02, 0.05, 0.1, 0.2), 0.05),
        Study(
            "qa",
            "Questions about the retrieval pairs' own pictures, or about others",
            (
                Row("homogeneous", CREM),
                Row("heterogeneous", Setting("arm=crem,heterogeneous")),
            ),
        ),
        Study(
            "text",
            "Words and numbers in the picture, from the first k of 16 chorus tokens",
            tuple(Row(f"k = {k}", _SIGNS, k=k, x=str(k)) for k in (1, 2, 4, 8, 16)),
            signs=True,
        ),
        Study(
            "sinks",
            "The first n context slots kept beside the chorus, without and with a system prompt",
            tuple(
                Row(f"n = {n}{name}", setting, sinks=n, x=str(n), series=name.strip(" ,") or "none")
                for name, setting in (("", CREM), (", system prompt", _SYSTEM))
                for n in (0, 1, 4, 16)
            ),
            judged="within series",
        ),
    )
}

TABLES: Mapping[str, Study] = {"3": TABLE_3, "4": TABLE_4}
