"""The paper's ablation, small: one config, four ways to train it, equal budget (Table 3).

    python benchmarks/arms.py --steps 300 --out runs/arms [--json]

Trains each arm of `configs/emoji.py` from the same seed (an interrupted run continues), then asks
the same things of all: find (held-out names, held-out scenes), tell natively, tell from the chorus
alone. "caption tokens" are teacher-forced: the share of a held-out scene's caption tokens that are
the model's first choice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

from crem_jax.commands.memory import use_huge_pages
from crem_jax.data.sources.questions import SEE
from crem_jax.evaluate import emoji
from crem_jax.evaluate.tokens import token_accuracy
from crem_jax.train.loop import train

CONFIG = Path(__file__).parents[1] / "configs" / "emoji.py"
COLUMNS = {
    "heldout_name_p5": "name P@5",
    "scene_p1": "scene P@1",
    "scene_hard_p1": "hard P@1",
    "scene_vqa_native": "VQA native",
    "scene_vqa_compressed": "VQA compressed",
    "caption_tokens_native": "caption tokens native",
    "caption_tokens_compressed": "caption tokens compressed",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("emoji_config", CONFIG)
    configs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(configs)
    results = {}
    for arm in configs.ARMS:
        config = configs.get_config(f"arm={arm}")
        config.steps, config.seed, config.eval_every = args.steps, args.seed, args.steps
        start = time.perf_counter()
        model = train(config, args.out / arm)
        seconds = time.perf_counter() - start
        results[arm] = {**measure(model), "train_seconds": seconds}
    print(table(results))
    if args.json:
        print(json.dumps({"steps": args.steps, "seed": args.seed, "arms": results}))


def measure(model) -> dict[str, float]:
    """All columns for one arm."""
    scores = emoji.names(model, "heldout") | emoji.scenes(model) | emoji.visual_questions(model)
    records = emoji.scene_records()
    pictures = [record.query.images[0] for record in records]
    turns = [(SEE, record.positives[0].text) for record in records]
    for mode, compressed in (("native", False), ("compressed", True)):
        scores[f"caption_tokens_{mode}"] = token_accuracy(model, pictures, turns, compressed)
    return {key: scores[key] for key in COLUMNS}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [f"| arm | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for arm, scores in results.items():
        lines.append(f"| {arm} | {' | '.join(f'{scores[key]:.3f}' for key in COLUMNS)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    use_huge_pages()
    main()
