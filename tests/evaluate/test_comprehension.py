"""Comprehension tables: how they are read, asked, scored and handed to VLMEvalKit."""

from __future__ import annotations

import base64
import csv
import json
import sys
from pathlib import Path

import openpyxl
import pytest

import crem_jax
from crem_jax.data.emoji.emoji import EmojiPictures
from crem_jax.data.images.encoded import file_bytes
from crem_jax.data.records import RecordError
from crem_jax.evaluate.comprehension.benchmarks import check, first, kind_of, prompt, score
from crem_jax.evaluate.comprehension.exports import write_predictions
from crem_jax.evaluate.comprehension.tables import read_table
from tests.support.cli_runner import crem

OPTIONS = {"A": "a cat", "B": "a dog", "C": "a fox"}


@pytest.fixture(scope="module")
def pictures() -> list[str]:
    """Six pictures in base64."""
    emoji = EmojiPictures("train", 32)
    return [base64.b64encode(file_bytes(emoji.draw(40 * i))).decode() for i in range(6)]


def write(path: Path, rows: list[dict]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(index, image, answer="A", question="What is it?", **more) -> dict:
    return {"index": index, "image": image, "question": question, "answer": answer, **more}


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory) -> Path:
    """One small table of each kind."""
    folder = tmp_path_factory.mktemp("tables")
    rotated = {"A": "a fox", "B": "a cat", "C": "a dog"}
    chosen = {"category": "ocr", "l2-category": "finegrained_perception (instance-level)"}
    rows = []
    for i, kind in enumerate(
        (chosen, {"category": "image_style", "l2-category": "coarse_perception"})
    ):
        rows.append(row(i, pictures[i], "A", **OPTIONS, **kind, hint="look"))
        rows.append(
            row(1_000_000 + i, i, "B", **rotated, **kind, hint="look")
        )  # of row i's picture
    write(folder / "MMBench_DEV_EN.tsv", rows)
    write(
        folder / "AI2D_TEST.tsv",
        [row(i, pictures[i], "B", **OPTIONS, category=f"c{i % 2}") for i in range(3)],
    )
    write(
        folder / "MMStar.tsv",
        [row(0, pictures[2], "C", 'Which\t"one"\nis it?', **OPTIONS, category="math")],
    )
    both = f"['{pictures[0]}', '{pictures[1]}']"
    write(
        folder / "MMMU_DEV_VAL.tsv",
        [
            row(
                "validation_Art_1",
                both,
                "A",
                "<image 1> or <image 2>?",
                split="validation",
                **OPTIONS,
            ),
            row("validation_Art_2", pictures[3], "24", "How many?", split="validation"),
            row("dev_Art_1", pictures[4], "B", split="dev", **OPTIONS),
        ],
    )
    names = ("VD_chart_0_0_0_0", "VD_chart_0_0_1_0", "VS_map_0_1_0_0", "VS_map_0_1_0_1")
    write(
        folder / "HallusionBench.tsv",
        [
            row(
                name,
                pictures[i],
                ("Yes", "No")[i % 2],
                "Is it?",
                **{"category": name[:2], "l2-category": name.split("_")[1]},
            )
            for i, name in enumerate(names)
        ],
    )
    write(folder / "MMVet.tsv", [row(7, pictures[5], "a fox", "Describe it.", category="ocr")])
    return folder


def read(folder: Path, name: str):
    questions = read_table(folder / f"{name}.tsv")
    return questions, kind_of(name, questions)


def test_prompts_and_pictures_are_as_the_tables_have_them(folder, pictures):
    questions, kind = read(folder, "MMBench_DEV_EN")
    assert kind == "circular"
    assert prompt(questions[0], kind) == (
        "Hint: look\nQuestion: What is it?\nOptions:\nA. a cat\nB. a dog\nC. a fox\n"
        "Please select the correct answer from the options above. \n"
    )
    assert questions[1].pictures is questions[0].pictures == (pictures[0],)
    assert questions[1].images() == (base64.b64decode(pictures[0]),)
    questions, kind = read(folder, "MMStar")
    assert kind == "choice" and 'Question: Which\t"one"\nis it?\n' in prompt(questions[0], kind)
    questions, kind = read(folder, "MMMU_DEV_VAL")
    assert kind == "mmmu" and questions[0].pictures == (pictures[0], pictures[1])
    assert prompt(questions[1], kind) == "Question: How many?\n"
    questions, kind = read(folder, "HallusionBench")
    assert kind == "yes_no" and prompt(questions[0], kind) == "Is it?"
    questions, kind = read(folder, "MMVet")
    assert kind == "judged" and prompt(questions[0], kind) == "Describe it."


def test_a_circular_question_is_right_in_every_rotation_or_wrong(folder):
    questions, kind = read(folder, "MMBench_DEV_EN")
    answers = {"0": "A", "1": "A", "1000000": "a cat", "1000001": "A"}
    got = score("MMBench_DEV_EN", questions, kind, answers)
    assert got["overall"] == 0.5 and got["questions"] == 2
    assert got["category"] == {"image_style": 0.0, "ocr": 1.0}
    assert got["reading"] == 1.0 and got["not reading"] == 0.0
    one = score("MMBench_DEV_EN", questions, kind, {**answers, "1000001": "nothing"})
    assert one["overall"] == 0.5 and one["unclear answers"] == 1


def test_the_first_questions_come_with_all_their_rotations(folder):
    questions, kind = read(folder, "MMBench_DEV_EN")
    assert [q.index for q in first(questions, kind, 1)] == ["0", "1000000"]
    assert first(questions, kind, None) == questions == first(questions, kind, 9)
    questions, kind = read(folder, "HallusionBench")
    assert first(questions, kind, 3) == questions[:3]
    questions, kind = read(folder, "MMMU_DEV_VAL")
    assert first(questions[::-1], kind, 1) == [questions[1]]  # the dev row does not count


def test_mmmu_counts_validation_and_its_open_questions_by_text(folder):
    questions, kind = read(folder, "MMMU_DEV_VAL")
    answers = {"validation_Art_1": "B", "validation_Art_2": "It is 24", "dev_Art_1": "B"}
    got = score("MMMU_DEV_VAL", questions, kind, answers)
    assert (got["overall"], got["with options"], got["questions"]) == (0.5, 0.0, 2)


def test_hallusionbench_by_answer_figure_and_question(folder):
    questions, kind = read(folder, "HallusionBench")
    said = ("Yes, it is", "no", "Yes", "Yes")  # the last one is wrong
    answers = dict(zip([q.index for q in questions], said, strict=True))
    got = score("HallusionBench", questions, kind, answers)
    assert got["aAcc"] == 3 / 4
    # the parts are set, figure, question: three figures and three questions, one of each wrong
    assert got["fAcc"] == 2 / 3 and got["qAcc"] == 2 / 3
    assert got["overall"] == pytest.approx((3 / 4 + 4 / 3) / 3)
    assert got["l2-category"] == {"chart": 1.0, "map": 0.5} and got["reading"] == 0.75


@pytest.fixture(scope="module")
def model(tiny_model_dir) -> crem_jax.Model:
    return crem_jax.load(tiny_model_dir)


FEW = ("MMBench_DEV_EN", "HallusionBench", "MMVet")
REST = ("AI2D_TEST", "MMStar", "MMMU_DEV_VAL")


def argv(tiny_model_dir, folder, out, *more, tables=FEW) -> list:
    tables = [folder / f"{name}.tsv" for name in tables]
    flags = ["--out", out, "--name", "tiny", "--max_new_tokens", 4]
    return ["eval", "comprehension", tiny_model_dir, "--tsv", *tables, *flags, *more]


@pytest.mark.parametrize(
    "tables", [FEW, pytest.param(REST, marks=pytest.mark.slow)], ids=["few", "rest"]
)
def test_every_table_is_answered_scored_and_exported(
    capsys, tiny_model_dir, model, folder, tmp_path, tables
):
    more = ["--xlsx", "--k", 2, "--json"]
    got = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, *more, tables=tables))
    assert got.code == 0, got.err
    assert list(got.json["benchmarks"]) == list(tables)
    for name, one in got.json["benchmarks"].items():
        assert all((scores is None) == (name == "MMVet") for scores in one["scores"].values())
        questions, kind = read(folder, name)
        items = [{"images": q.images(), "text": prompt(q, kind)} for q in questions]
        for mode, more in (("native", {}), ("compressed", {"compressed": True, "k": 2})):
            expected = model.generate(items, max_new_tokens=4, **more)
            stem = tmp_path / name / f"tiny-{mode}_{name}"
            lines = Path(f"{stem}.jsonl").read_text().splitlines()
            assert [json.loads(line)["prediction"] for line in lines] == expected
            csv.field_size_limit(sys.maxsize)
            with open(f"{stem}.tsv", newline="") as file:
                table = list(csv.DictReader(file, delimiter="\t"))
            assert [line["prediction"] for line in table] == expected
            assert [line["index"] for line in table] == [q.index for q in questions]
            assert (
                "image" not in table[0] and table[0]["question"] == questions[0].columns["question"]
            )
            sheet = openpyxl.load_workbook(f"{stem}.xlsx").active
            assert [cell.value for cell in sheet[1]] == [*questions[0].columns, "prediction"]
            assert sheet.max_row == len(questions) + 1
    page = (tmp_path / "report.html").read_text()
    assert ("MMVet has no score here" in page) == ("MMVet" in tables)
    assert "CREM-2B (published)" in page
    assert f"| mean of {len(set(tables) - {'MMVet'})} |" in (tmp_path / "report.md").read_text()


def test_answers_go_on_where_they_were_cut_off(capsys, tiny_model_dir, folder, tmp_path):
    one = ["--modes", "native", "--json"]
    whole = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, *one)).json
    path = tmp_path / "HallusionBench" / "answers.jsonl"
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # as a killed run leaves it
    again = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, *one))
    assert again.json["benchmarks"] == whole["benchmarks"]
    assert sorted(path.read_bytes().splitlines()) == sorted(text.splitlines())
    other = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, "--modes", "compressed"))
    assert other.code == 2 and "answers.jsonl has answers of other conditions" in other.err


@pytest.mark.parametrize(
    "rows, words",
    [
        ([{"index": 1, "image": ""}], "has no column 'question'"),
        ([row(1, "short")], "is 'short': neither base64 nor the index of a row"),
        ([row(1, "x" * 65)], "image is no base64"),
        ([row(1, "['a',")], "image is no list of base64"),
        ([row(1, ""), row(1, "")], "has the index '1' of an earlier row"),
    ],
)
def test_a_table_that_is_not_vlmevalkits_is_named(tmp_path, rows, words):
    path = write(tmp_path / "t.tsv", rows)
    with pytest.raises(RecordError) as error:
        read_table(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_a_table_that_is_cut_off_or_not_utf8_is_named(tmp_path):
    path = write(tmp_path / "MMStar.tsv", [row(1, "", **OPTIONS), row(2, "", **OPTIONS)])
    text = path.read_bytes()
    path.write_bytes(text[: text.rindex(b"What is it?") + 4])
    with pytest.raises(RecordError, match=r"MMStar\.tsv:3 has 3 columns, the first line 7; is the"):
        read_table(path)
    path.write_bytes(text.replace(b"a dog", b"a d\xf6g"))
    with pytest.raises(RecordError, match=r"MMStar\.tsv is not UTF-8: .*0xf6"):
        read_table(path)


def test_options_and_hints_that_pandas_reads_as_missing_are_missing(tmp_path):
    options = {"A": "a cat", "B": "nan", "C": "NaN"}
    path = write(tmp_path / "MMStar.tsv", [row(1, "", **options, hint="nan")])
    (question,) = read_table(path)
    assert prompt(question, "choice").splitlines()[:-1] == [
        *("Question: What is it?", "Options:", "A. a cat")
    ]


@pytest.mark.parametrize(
    "name, rows, words",
    [
        ("MMStar", [row(1, "", **OPTIONS), row(2, "", "", **OPTIONS)], "'2' has no answer"),
        ("MMStar", [row(1, "", "E", **OPTIONS)], "answer 'E'; expected one of its A, B, C"),
        ("MMStar", [row(1, "", **OPTIONS), row(2, "")], "'A'; expected one of its no options"),
        ("MMMU_DEV_VAL", [row("a", "", **OPTIONS), row("b", "", " ")], "'b' has no answer"),
        ("MMBench_DEV", [row("a", "", **OPTIONS)], "'a' is not a whole number"),
        ("HallusionBench", [row("VD_1", "", "Yes")], "'VD_1' is not of HallusionBench"),
        ("HallusionBench", [row("VD_c_0_0_0_0", "", "1")], "answer '1'; expected Yes or No"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(tmp_path, name, rows, words):
    questions = read_table(write(tmp_path / f"{name}.tsv", rows))
    with pytest.raises(RecordError) as error:
        check(questions, kind_of(name, questions))
    assert words in str(error.value)


def test_a_table_that_cannot_be_scored_stops_before_all_others(capsys, tiny_model_dir, tmp_path):
    good = write(tmp_path / "MMVet.tsv", [row(1, "")])
    bad = write(tmp_path / "MMStar.tsv", [row(1, "", "E", **OPTIONS)])
    out = tmp_path / "out"
    got = crem(capsys, "eval", "comprehension", tiny_model_dir, "--tsv", good, bad, "--out", out)
    assert got.code == 2 and f"{bad}: index '1' has the answer 'E'" in got.err
    assert not out.exists()


def test_predictions_come_back_as_they_were_said(tmp_path):
    said = {"1": "=5", "2": "one\rtwo", "3": '"a"\tb\nc', "4": "+1"}
    questions = read_table(write(tmp_path / "MMVet.tsv", [row(index, "") for index in said]))
    tsv, lines, sheet = write_predictions(tmp_path / "m", questions, said, excel=True)
    with open(tsv, newline="") as file:
        table = {line["index"]: line["prediction"] for line in csv.DictReader(file, delimiter="\t")}
    assert table == said
    assert [json.loads(line)["prediction"] for line in lines.open()] == list(said.values())
    book = openpyxl.load_workbook(sheet, data_only=True).active
    values = {str(index): prediction for index, *_, prediction in book.values}
    assert values.pop("index") == "prediction"
    assert values == said | {"2": "one\ntwo"}  # as XML has it


def test_what_cannot_be_asked_is_named(capsys, tiny_model_dir, folder, tmp_path):
    got = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, "--modes", "nativ"))
    assert got.code == 2 and "--modes 'nativ' is not one of native, compressed" in got.err
    got = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, "--k", 9))
    assert got.code == 2 and "k = 9 is not in 1..4" in got.err
    got = crem(capsys, *argv(tiny_model_dir, folder, tmp_path, "--modes", "native", "--k", 2))
    assert got.code == 2 and "k = 2 is of compressed answers; the modes are native" in got.err
    (tmp_path / "AI2D.tsv").write_text("index\tquestion\n")
    with pytest.raises(RecordError, match=r"AI2D\.tsv has no rows"):
        read_table(tmp_path / "AI2D.tsv")
    long = row(4, "", question="why " * 5000)
    for index, one, words in ((4, long, "positions"), (5, row(5, "", question=" "), "is empty")):
        write(tmp_path / "MMVet.tsv", [row(1, "", question="What?"), one])
        out = tmp_path / f"out-{index}"
        tables = ["--tsv", tmp_path / "MMVet.tsv", "--out", out]
        got = crem(capsys, "eval", "comprehension", tiny_model_dir, *tables)
        assert got.code == 2 and f"index {index}: the question" in got.err and words in got.err
        assert (out / "MMVet" / "answers.jsonl").read_text().count("\n") == 1  # nothing was asked
    image = base64.b64encode(b"no picture" * 9).decode()
    write(tmp_path / "MMStar.tsv", [row(3, image, **OPTIONS)])
    tables = ["--tsv", tmp_path / "MMStar.tsv", "--out", tmp_path / "out"]
    got = crem(capsys, "eval", "comprehension", tiny_model_dir, *tables)
    assert got.code == 2 and "index 3: <bytes>: is not a picture" in got.err
