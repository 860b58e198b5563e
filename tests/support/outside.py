"""What others do with an exported directory; run in a process that cannot import crem_jax.

    python -I tests/support/outside.py NAME EXPORT INPUTS OUT

INPUTS is a JSON file of items ({"text": …, "images": [paths]}) and a question; each function
returns arrays, which go to OUT (.npz).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class Refuse:
    """An importer that has no crem_jax, installed or not."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "crem_jax":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def pictures(item: dict) -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path)) for path in item["images"]]


def in_transformers(directory: str, items: list[dict], question: str) -> dict:
    """Embeddings as the model card computes them, one by one."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory, backend="pil")
    first, count = (model.config.crem[key] for key in ("first_chorus_id", "num_chorus"))
    embeddings = []
    for item in items:
        content = [{"type": "image", "image": image} for image in pictures(item)]
        content += [{"type": "text", "text": item["text"]}] if item["text"] else []
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            chorus=True,
            sanitize_control_tokens=True,
        )
        chorus = torch.isin(inputs["input_ids"], torch.arange(first, first + count))
        with torch.inference_mode():
            hidden = model.model(**inputs).last_hidden_state
        embeddings.append(torch.nn.functional.normalize(hidden[chorus].mean(dim=0), dim=0))
    return {"embeddings": torch.stack(embeddings).numpy()}


def in_sentence_transformers(directory: str, items: list[dict], question: str) -> dict:
    """All items in mixed batches, pictures as paths, after the text where an item has both."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(directory)
    given = []
    for item in items:
        if not item["images"]:
            given.append(item["text"])
        elif not item["text"]:
            given.append({"image": item["images"]})
        else:
            given.append({"text": item["text"], "image": item["images"]})
    two = {"chat_template": {"chorus": 2}}
    return {
        "embeddings": model.encode(given, batch_size=4),
        "embeddings of 2": model.encode(given, processing_kwargs=two),
        "processor": type(model[0].processor.image_processor).__name__,
    }


def in_mteb(directory: str, items: list[dict], question: str) -> dict:
    """What the model card does, then every metric of the retrieval tasks by the card's encoder."""
    from tests.support import mteb_tasks

    card = (Path(directory) / "README.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    scope = {"PATH": directory, "IMAGE": items[2]["images"][0]}
    exec(compile(code, "README.md", "exec"), scope)
    return {
        "blocks": len(re.findall("```python", card)),
        "embedding": scope["embedding"].numpy(),
        "words": scope["words"],
        "pictures": scope["pictures"],
        "said": scope["said"],
        "passed": scope["results"].all_passed,
        "summary": json.dumps(scope["results"].modality_summary()),
        "scores": json.dumps(mteb_tasks.scores(scope["encoder"])),
    }


def in_torch(directory: str, items: list[dict], question: str) -> dict:
    """Answers from the chorus alone, by the example that is shipped in the directory."""
    sys.path.insert(0, directory)
    import compressed_generation as example

    model, processor = example.load(directory)
    answers = {}
    for i, item in enumerate(items[-3:]):
        for k in (1, 3, 4):
            kept = example.compress(model, processor, item["images"], item["text"], k)
            assert kept.entries[0][0].shape[2] == k
            answers[f"{i} {k}"] = example.answer(model, processor, kept, question, 12)
    return answers


if __name__ == "__main__":
    name, export, inputs, out = sys.argv[1:]
    sys.meta_path.insert(0, Refuse())
    try:
        importlib.import_module("crem_jax")
    except ModuleNotFoundError:
        pass
    else:
        sys.exit("crem_jax can be imported")
    sys.path.insert(0, str(Path(__file__).parents[2]))
    given = json.loads(Path(inputs).read_text())
    results = globals()[name](export, given["items"], given["question"])
    assert not [module for module in sys.modules if module.partition(".")[0] == "crem_jax"]
    np.savez(out, **results)
