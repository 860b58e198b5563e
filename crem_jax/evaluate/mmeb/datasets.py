"""The 36 data sets of MMEB (Jiang et al., VLM2Vec, arXiv 2410.05160), by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from crem_jax.errors import CremError

CLASSIFICATION, VQA, RETRIEVAL, GROUNDING = TASKS = (
    *("Classification", "VQA", "Retrieval", "Grounding"),
)
"""The meta-tasks."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One of MMEB's data sets.

    Attributes:
      task: one of TASKS. in_distribution: whether MMEB-train has a part of it.
    """

    name: str
    task: str
    in_distribution: bool


def _declare(task: str, in_distribution: str, others: str) -> tuple[Dataset, ...]:
    trained = [Dataset(name, task, True) for name in in_distribution.split()]
    return (*trained, *(Dataset(name, task, False) for name in others.split()))


DATASETS: tuple[Dataset, ...] = (
    *_declare(
        CLASSIFICATION,
        "ImageNet-1K N24News HatefulMemes VOC2007 SUN397",
        "Place365 ImageNet-A ImageNet-R ObjectNet Country211",
    ),
    *_declare(
        VQA,
        "OK-VQA A-OKVQA DocVQA InfographicsVQA ChartQA Visual7W",
        "ScienceQA VizWiz GQA TextVQA",
    ),
    *_declare(
        RETRIEVAL,
        "VisDial CIRR VisualNews_t2i VisualNews_i2t MSCOCO_t2i MSCOCO_i2t NIGHTS WebQA",
        "FashionIQ Wiki-SS-NQ OVEN EDIS",
    ),
    *_declare(GROUNDING, "MSCOCO", "RefCOCO RefCOCO-Matching Visual7W-Pointing"),
)
"""All data sets, in the order of the paper's tables."""


def chosen(names: Sequence[str] | None) -> tuple[Dataset, ...]:
    """The data sets with these names or of these meta-tasks, in the order of DATASETS; None is all.

    Raises:
      CremError: a name is unknown, or no name is given.
    """
    if names is None:
        return DATASETS
    if not names:
        raise CremError("--datasets names nothing; expected data sets or meta-tasks of MMEB")
    known = [dataset.name for dataset in DATASETS]
    for name in names:
        if name not in known and name not in TASKS:
            near = difflib.get_close_matches(name, [*known, *TASKS], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise CremError(f"MMEB has no data set {name!r}; {hint}")
    return tuple(d for d in DATASETS if d.name in names or d.task in names)
