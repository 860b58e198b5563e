"""MMEB's scores against a scorer that shares no code with ours: plain loops in float64."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from crem_jax.data.records import RecordError
from crem_jax.evaluate.mmeb.cases import read_cases
from crem_jax.evaluate.mmeb.datasets import DATASETS, TASKS, chosen
from crem_jax.evaluate.mmeb.emoji_data import write
from crem_jax.evaluate.mmeb.scoring import CUTS, measures, rank
from crem_jax.evaluate.mmeb.summary import means, score, warnings

DIM = 12
FOUR = chosen(["ImageNet-1K", "ScienceQA", "WebQA", "RefCOCO-Matching"])


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One data set a meta-task, two of them seen in training, with candidates that repeat."""
    root = tmp_path_factory.mktemp("mmeb")
    write(root, FOUR, queries=30, candidates=12)
    for dataset in FOUR:
        path = root / f"{dataset.name}.jsonl"
        rows = rows_of(path) if path.exists() else from_parquet(root / dataset.name)
        for number, row in enumerate(rows):
            for column in ("tgt_text", "tgt_img_path"):
                row[column] = list(row[column])
                if number % 3 == 0:
                    row[column] += row[column][:1] + row[column][4:6]  # the target, and two others
        for old in (root / dataset.name).glob("*.parquet"):
            old.unlink()
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def from_parquet(folder) -> list[dict]:
    import pyarrow.parquet as pq

    return [row for file in sorted(folder.iterdir()) for row in pq.read_table(file).to_pylist()]


def key_of(instruction: str, text: str, picture: str) -> tuple[str, str]:
    """What an item is, worked out here from the columns as they stand."""
    said = f"{instruction} {text}".replace("<|image_1|>", "").strip()
    return " ".join(said.split()), picture.rsplit("/", 1)[-1]


class Vectors:
    """Made-up embeddings by content; some are told to equal others."""

    def __init__(self, seed: int):
        self.seed, self.same = seed, {}

    def __call__(self, key: tuple[str, str]) -> np.ndarray:
        key = self.same.get(key, key)
        rng = np.random.default_rng([self.seed, *repr(key).encode()])
        vector = rng.standard_normal(DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)


def brute_force(rows: list[dict], vector) -> dict:
    """Ranks and measures by loops; a target is beaten by whatever is not it and scores no less."""
    found = []
    for row in rows:
        query = vector(key_of(row.get("qry_inst") or "", row["qry_text"], row["qry_img_path"]))
        keys = [
            key_of(row.get("tgt_inst") or "", text, picture)
            for text, picture in zip(row["tgt_text"], row["tgt_img_path"], strict=True)
        ]
        scores = [
            math.fsum(float(a) * float(b) for a, b in zip(query, vector(key), strict=True))
            for key in keys
        ]
        rivals = [s for s, key in zip(scores, keys, strict=True) if key != keys[0]]
        found.append(sum(s >= scores[0] for s in rivals))
    out: dict = {"ranks": found}
    for cut in CUTS:
        hits = [place < cut for place in found]
        out[f"hit@{cut}"] = out[f"recall@{cut}"] = np.mean(hits)
        out[f"precision@{cut}"] = np.mean([hit / cut for hit in hits])
        gains = [1 / math.log2(place + 2) if place < cut else 0 for place in found]
        out[f"ndcg_linear@{cut}"] = out[f"ndcg_exponential@{cut}"] = np.mean(gains)
        turns = [1 / (place + 1) if place < cut else 0 for place in found]
        out[f"mrr@{cut}"] = out[f"map@{cut}"] = np.mean(turns)
        pairs = [(hit / cut, float(hit)) for hit in hits]
        out[f"f1@{cut}"] = np.mean([2 * p * r / (p + r) if p + r else 0 for p, r in pairs])
    return out


def embedded(cases, vector) -> np.ndarray:
    keys = [(" ".join(i.text.split()), "".join(i.images).rsplit("/", 1)[-1]) for i in cases.items]
    return np.stack([vector(key) for key in keys])


def ranked(cases, vectors):
    return rank(vectors, cases.queries, cases.candidates, cases.places)


@pytest.mark.parametrize("dataset", FOUR, ids=lambda d: d.name)
def test_scores_equal_brute_force_with_ties_and_repeated_candidates(root, seed, dataset):
    rows, vector = rows_of(root / f"{dataset.name}.jsonl"), Vectors(seed)
    for row in rows[::4]:  # a rival of the same embedding as the target
        instruction = row.get("tgt_inst") or ""
        keys = [key_of(instruction, row["tgt_text"][i], row["tgt_img_path"][i]) for i in (0, 2)]
        if keys[0] not in vector.same.values() and keys[1] not in vector.same:
            vector.same[keys[1]] = vector.same.get(keys[0], keys[0])
    cases = read_cases(dataset, root)
    got = ranked(cases, embedded(cases, vector))
    expected = brute_force(rows, vector)
    assert got.rank.tolist() == expected.pop("ranks")
    assert measures(got.rank) == pytest.approx(expected, rel=0, abs=1e-15)
    assert got.rank.tolist().count(0) / len(rows) == expected["precision@1"]
    assert np.sum(got.ties > 0) >= 3
    assert all(
        int(np.sum(best == row[0])) <= 2
        for best, row in zip(got.best, cases.candidates, strict=True)
    )


@pytest.mark.parametrize("dataset", FOUR, ids=lambda d: d.name)
def test_constant_embeddings_score_zero(root, dataset):
    cases = read_cases(dataset, root)
    constant = np.full((len(cases.items), DIM), DIM**-0.5, np.float32)
    got = ranked(cases, constant)
    result = score(cases, got)
    assert result.precision == 0.0 and result.near_chance and result.ties == result.queries
    assert measures(got.rank)["hit@10"] == 0.0  # the target stands behind all it ties with
    assert all(best[0] != row[0] for best, row in zip(got.best, cases.candidates, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_refused_with_its_row(root, value):
    cases = read_cases(FOUR[0], root)
    vectors = embedded(cases, Vectors(0))
    vectors[cases.candidates[0][0], 3] = value  # argmax would call it the best
    with pytest.raises(ValueError, match=r"ImageNet-1K\.jsonl:1: the embedding is not finite"):
        ranked(cases, vectors)


def test_perfect_embeddings_score_one_and_means_are_over_data_sets(root):
    scores = []
    for dataset in FOUR:
        cases = read_cases(dataset, root)
        vectors = embedded(cases, Vectors(1))
        queries = np.stack([vectors[row[0]] for row in cases.candidates])
        number = np.arange(len(vectors), len(vectors) + len(queries))
        good = dataset.in_distribution
        got = rank(
            np.concatenate([vectors, queries if good else -queries]), number, cases.candidates
        )
        scores.append(score(cases, got))
    assert [one.precision for one in scores] == [1.0, 0.0, 1.0, 0.0]
    assert means(scores) == {
        **{"overall": 0.5, "IND": 1.0, "OOD": 0.0},
        **{"Classification": 1.0, "VQA": 0.0, "Retrieval": 1.0, "Grounding": 0.0},
    }
    told = "\n".join(warnings(scores))
    assert "4 of MMEB's 36 data sets" in told
    assert "near chance in 2: ScienceQA 0.000 (0.083), RefCOCO-Matching 0.000 (0.083)" in told


def test_the_registry_is_that_of_mmeb():
    assert len(DATASETS) == len({d.name for d in DATASETS}) == 36
    assert sum(d.in_distribution for d in DATASETS) == 20
    assert [sum(d.task == task for d in DATASETS) for task in TASKS] == [10, 10, 12, 4]
    assert [d.name for d in chosen(["Grounding", "VOC2007"])][:2] == ["VOC2007", "MSCOCO"]
    with pytest.raises(ValueError, match="no data set 'VOC2008'; did you mean 'VOC2007'"):
        chosen(["VOC2008"])


def test_both_layouts_give_the_same_items(tmp_path):
    (dataset,) = chosen(["WebQA"])
    joined = {
        "qry_text": "<|image_1|>\nFind a Wikipedia image that answers this question: Who?\n",
        "qry_img_path": "",  # as on the hub: a placeholder of no picture
        "tgt_text": ["<|image_1|>\nRepresent it: one\n", "<|image_1|>\nRepresent it: two\n"],
        "tgt_img_path": ["a/1.png", "a/2.png"],
    }
    beside = {
        "qry_inst": "<|image_1|>\nFind a Wikipedia image that answers this question:",
        "qry_text": "Who?",
        "qry_img_path": "",
        "tgt_inst": "<|image_1|>\nRepresent it:",
        "tgt_text": ["one", "two"],
        "tgt_img_path": ["a/1.png", "a/2.png"],
    }
    read = []
    for name, row in (("joined", joined), ("beside", beside)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "WebQA.jsonl").write_text(json.dumps(row))
        cases = read_cases(dataset, tmp_path / name, tmp_path / "pictures")
        read.append([(item.text, item.images) for item in cases.items])
    assert read[0] == read[1]
    assert read[0][0] == ("Find a Wikipedia image that answers this question: Who?", ())
    assert read[0][1] == ("Represent it: one", (str(tmp_path / "pictures" / "a" / "1.png"),))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tgt_text": ["a"], "tgt_img_path": ["", ""]}, "has 1 tgt_text and 2 tgt_img_path"),
        ({"tgt_text": "a", "tgt_img_path": ""}, "has no list of candidates"),
        ({"tgt_text": None, "tgt_img_path": None}, "has neither 'tgt_text' nor 'tgt_img_path'"),
        ({"qry_text": 3}, "text is 3 (int); expected a text"),
        ({"tgt_text": ["a", ["b"]]}, "text is a list; expected a text"),
        ({"qry_text": " "}, "has no row that can be used"),
    ],
)
def test_a_row_that_is_not_mmebs_is_named(tmp_path, change, words):
    (dataset,) = chosen(["GQA"])
    row = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["a", "b"], "tgt_img_path": ["", ""]}
    (tmp_path / "GQA.jsonl").write_text(json.dumps(row | change))
    with pytest.raises(RecordError) as error:
        read_cases(dataset, tmp_path)
    assert "GQA.jsonl:1" in str(error.value) and words in str(error.value)


def test_empty_candidates_are_left_out_and_counted(tmp_path):
    (dataset,) = chosen(["GQA"])
    row = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["a", "", "b"]}
    empty = row | {"tgt_text": ["", "a"]}
    (tmp_path / "GQA.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(empty)}")
    cases = read_cases(dataset, tmp_path)
    assert [row.tolist() for row in cases.candidates] == [[1, 2]] and cases.rows == 2
    assert cases.left_out == {"candidates that are empty": 1, "the target is empty": 1}
