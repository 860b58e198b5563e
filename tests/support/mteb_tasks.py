"""Retrieval tasks in mteb's own API, offline and with no code of ours: mocks and a larger one."""

from __future__ import annotations

from typing import Any

import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.mocks.mock_tasks.retrieval import (
    MockAny2AnyRetrievalI2TTask,
    MockAny2AnyRetrievalT2ITask,
    MockMultiChoiceTask,
    MockRetrievalTask,
)
from PIL import Image

MOCKS = (
    MockRetrievalTask,
    MockAny2AnyRetrievalI2TTask,
    MockAny2AnyRetrievalT2ITask,
    MockMultiChoiceTask,  # picture and question in one query
)


class Noise(AbsTaskRetrieval):
    """24 queries of picture and text among 24 pictures of two sizes, none of which a model
    knows: a score that only equal embeddings share."""

    metadata = TaskMetadata(
        **{
            **MockMultiChoiceTask.metadata.model_dump(),
            "name": "Noise",
            "category": "it2i",
            "modalities": ["image", "text"],
            "type": "Any2AnyRetrieval",
            "main_score": "ndcg_at_10",
        }
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rng = np.random.default_rng(7)

        def picture() -> Image.Image:
            height, width = ((16, 48), (70, 90))[rng.integers(2)]
            return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

        ids = [str(i) for i in range(24)]
        queries = {
            "id": [f"q{i}" for i in ids],
            "text": [f"find number {i}, then {rng.integers(1000)}" for i in ids],
            "image": [picture() for _ in ids],
        }
        corpus = {"id": [f"d{i}" for i in ids], "image": [picture() for _ in ids]}
        split = RetrievalSplitData(
            queries=Dataset.from_dict(queries),
            corpus=Dataset.from_dict(corpus),
            relevant_docs={f"q{i}": {f"d{i}": 1} for i in ids},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def scores(encoder) -> dict[str, dict[str, float]]:
    """Task -> metric -> value; the tasks are made anew, as their data is drawn when loaded."""
    tasks = [kind() for kind in (*MOCKS, Noise)]
    results = mteb.evaluate(encoder, tasks, cache=None, show_progress_bar=False)
    return {
        result.task_name: {
            metric: value
            for (entry,) in result.scores.values()
            for metric, value in entry.items()
            if isinstance(value, float)
        }
        for result in results.task_results
    }
