"""The ablation: its settings, its pace, its runs and what its tables say."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crem_jax.ablation import runs as ablation_runs
from crem_jax.ablation.measure import COLUMNS, SIGN_COLUMNS, cache_share
from crem_jax.ablation.pace import Cost, Pace, choose_steps, step_flops
from crem_jax.ablation.runs import SUMMARY, Run, runs_of
from crem_jax.ablation.studies import CREM, STUDIES, TABLES
from crem_jax.ablation.study import Row, Setting, Study
from crem_jax.ablation.table import collect, markdown, verdict
from crem_jax.commands.recipe import read_recipe
from crem_jax.configs.schema import TrainConfig
from crem_jax.data.sources.registry import make_sources
from crem_jax.report.ablation import draw
from crem_jax.train.setup import make_objective
from tests.support.cli_runner import crem
from tests.support.tiny_run import tiny_config

CONFIG = "emoji"
ALL = {**TABLES, **STUDIES}


def config_of(setting: Setting):
    return read_recipe(f"{CONFIG}:smoke,{setting.option}", setting.flags)


def test_every_setting_of_every_study_is_a_config_that_can_be_trained():
    settings = {setting for study in ALL.values() for setting in study.settings}
    assert len({setting.name for setting in settings}) == len(settings) > 25
    for setting in settings:
        config = config_of(setting)
        objective, spec = make_objective(config), TrainConfig.of(config).data
        plain = TrainConfig.of(config_of(CREM)).data
        for name, bucket in spec.buckets.items():
            room = bucket.slots - objective.model.num_chorus - 16 * ("system" in setting.option)
            assert room == plain.buckets[name].slots - 8
        assert max(objective.model.chorus_ids) < objective.model.text.vocab_size
        assert set(config.data.sources) == set(config.data.records)
    assert sum(study.signs for study in ALL.values()) == 1


def test_the_arms_differ_in_what_the_paper_says():
    def facts(arm: str):
        objective = make_objective(config_of(Setting(f"arm={arm}")))
        loss, model = objective.loss, objective.model
        learns = bool(loss.retrieval), bool(loss.generation)
        return (*learns, model.eos_token_id not in model.chorus_ids, loss.p_compressed > 0)

    assert facts("crem") == (True, True, True, True)
    assert facts("prompt_only") == (False, True, True, True)
    assert facts("strategy_only") == (True, True, False, True)
    assert facts("joint_no_compression") == (True, True, False, False)
    assert facts("generation_only") == (False, True, False, False)
    assert facts("retrieval_only")[:3] == (True, False, False)
    with pytest.raises(ValueError, match=r"expected smoke, arm=<retrieval_only\|"):
        config_of(Setting("chorus=0"))


def test_the_two_kinds_of_questions_train_on_as_many_pairs_and_conversations():
    found = {}
    for option in ("arm=crem", "arm=crem,heterogeneous"):
        config = config_of(Setting(option))
        pairs = turns = both = 0
        for name, source in make_sources(TrainConfig.of(config).data.sources).items():
            record = source.record(3, np.random.default_rng(0))
            count = config.data.records[name]
            pairs += count * bool(record.positives)
            turns += count * bool(record.turns)
            both += count * bool(record.positives and record.turns)
        found[option] = pairs, turns, both
    (pairs, turns, both), other = found.values()
    assert pairs == turns == both > 0 and other == (pairs, turns, 0)


def test_a_study_shares_the_runs_of_another_where_nothing_differs(tmp_path):
    runs = runs_of([TABLES["3"], STUDIES["temperature"], STUDIES["sinks"]], tmp_path, 2)
    assert len(runs) == len({run.directory for run in runs}) == 2 * (6 + 3 + 1)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_the_steps_that_fit_take_the_time_there_is():
    timed = Pace(0, 4, 0.5, 20, start_seconds=5, compile_seconds=30, flops=100)
    small, large = Setting("a"), Setting("b")
    costs = [Cost(small, 100.0), Cost(large, 200.0, rows=4)] * 3
    steps = choose_steps(timed, costs, 1200)
    estimates = dataclasses.replace(timed, steps=steps).seconds(costs)
    assert 1200 - 0.5 * 9 <= sum(estimates) <= 1200
    assert estimates[0] - estimates[2] == 30 and estimates[2] == estimates[4]
    assert estimates[2] == 5 + 0.5 * steps + 20 and estimates[3] == 5 + steps + 80
    with pytest.raises(ValueError, match="--minutes 6 is too short for 6 runs"):
        choose_steps(timed, costs, 360)
    costs = {arm: step_flops(config_of(Setting(f"arm=crem,{arm}"))) for arm in ("chorus=64", "")}
    costs |= {row.label: step_flops(config_of(row.setting)) for row in TABLES["3"].rows}
    assert costs["chorus=64"] > 1.5 * costs[""] and costs["CREM"] == costs[""]
    assert costs["retrieval only"] < 0.85 * costs["training strategy only"] < costs["CREM"]
    assert costs["generation only"] < costs["joint, no compression"]


def written(directory: Path, study: Study, scores: dict[str, list[float]]) -> list[Run]:
    """Runs whose columns all are what `scores` says by label and seed."""
    runs = []
    for row in study.rows:
        for seed, value in enumerate(scores.get(row.label, ())):
            run = Run(row.setting, seed, directory / row.setting.name / str(seed))
            run.directory.mkdir(parents=True)
            asked = {row.score_key: dict.fromkeys(COLUMNS, value)}
            (run.directory / SUMMARY).write_text(json.dumps({"scores": asked}))
            runs.append(run)
    return runs


def test_a_table_says_what_is_best_and_what_is_within_spread(tmp_path):
    study = Study("s", "T", tuple(Row(x, Setting(f"arm={x}")) for x in ("a", "b", "c")))
    runs = written(tmp_path, study, {"a": [0.50, 0.60, 0.70], "b": [0.55, 0.60], "c": [0.1, 0.1]})
    collected = collect(study, runs)
    assert collected["rows"][0]["scores"]["find"] == pytest.approx((0.6, 0.1))
    said = verdict(study, collected)
    assert "- find: best is a (0.600 ± 0.100); within spread: b" in said
    text = markdown(study, collected, 7)
    assert "| a | 0.600 ± 0.100 |" in text and "7 steps" in text and "published" not in text
    draw(study, collected, tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 1000


def test_a_table_counts_the_pairs_that_are_in_the_papers_order(tmp_path):
    study = TABLES["3"]
    paper = {row.label: row.published["mmeb"] / 100 for row in study.rows}
    as_published = {label: [v - 0.001, v + 0.001] for label, v in paper.items()}
    runs = written(tmp_path / "1", study, as_published)
    said = "\n".join(verdict(study, collect(study, runs)))
    assert "the paper's order by mmeb: 15 of 15 pairs the same, 0 within spread" in said
    as_published["CREM"] = [0.01, 0.02]
    runs = written(tmp_path / "2", study, as_published)
    said = "\n".join(verdict(study, collect(study, runs)))
    assert "10 of 15 pairs the same" in said and "against it: retrieval only / CREM" in said


def test_series_are_judged_by_their_means_over_the_places_they_share(tmp_path):
    rows = [Row(f"K = {k}", Setting(f"own={k}"), x=str(k), series="own") for k in (1, 2, 9)]
    rows += [Row(f"first {k}", Setting("all"), k=k, x=str(k), series="elastic") for k in (1, 2)]
    study = Study("s", "T", tuple(rows), judged="series")
    scores = {"K = 1": [0.1, 0.1], "K = 2": [0.3, 0.3], "K = 9": [0.9], "first 1": [0.2, 0.22]}
    runs = written(tmp_path, study, scores)
    for seed, value in enumerate((0.31, 0.35)):
        path = tmp_path / "all" / str(seed) / SUMMARY
        known = json.loads(path.read_text())["scores"]
        known[rows[-1].score_key] = dict.fromkeys(COLUMNS, value)
        path.write_text(json.dumps({"scores": known}))
    said = "\n".join(verdict(study, collect(study, runs)))
    assert "find, mean over 1, 2: best is elastic (0.270 ± 0.021); within spread: none" in said
    assert "find, elastic against own, in points: 1: +11.0 ± 1.4, 2: +3.0 ± 2.8" in said
    within = dataclasses.replace(study, judged="within series")
    said = "\n".join(verdict(within, collect(study, runs)))
    assert "find (own): best is K = 9" in said and "find (elastic): best is first 2" in said


def test_what_signs_say_is_judged_and_drawn(tmp_path):
    study = STUDIES["text"]
    for row in study.rows:
        run = Run(row.setting, 0, tmp_path / row.setting.name / "0")
        run.directory.mkdir(parents=True, exist_ok=True)
        known = run.summary().get("scores", {})
        known[row.score_key] = dict.fromkeys([*COLUMNS, *SIGN_COLUMNS], 0.1)
        known[row.score_key]["sign_compressed"] = row.k / 100
        (run.directory / SUMMARY).write_text(json.dumps({"scores": known}))
    collected = collect(study, [run])
    assert "- sign read, compressed: best is k = 16 (0.160)" in "\n".join(verdict(study, collected))
    draw(study, collected, tmp_path / "signs.png")
    draw(STUDIES["qa"], {"rows": collected["rows"][:2]}, tmp_path / "none.png")
    signs, none = (Image.open(tmp_path / f"{name}.png") for name in ("signs", "none"))
    assert signs.width > 1.4 * none.width


def test_half_a_table_is_drawn_with_what_there_is(tmp_path):
    study = TABLES["4"]
    collected = collect(study, written(tmp_path, study, {"EOS": [0.4], "K = 4": [0.5]}))
    text = markdown(study, collected, 5)
    assert "over 1 seed;" in text and "| first 64 of 64 | –" in text and "| 0.07 |" in text
    draw(study, collected, tmp_path / "t.png")
    with pytest.raises(ValueError, match="study 4 has no finished run"):
        draw(study, collect(study, []), tmp_path / "t.png")


def test_wrong_usage_of_ablate_is_one_line(capsys, tmp_path):
    command = ["ablate", f"--config={CONFIG}:smoke", f"--workdir={tmp_path}"]
    assert crem(capsys, *command, "--study", "luck").code == 2
    both = crem(capsys, *command, "--steps", 3, "--minutes", 2)
    assert both.code == 2 and "not allowed with" in both.err
    Pace(10, 256).write(tmp_path)
    other = crem(capsys, *command, "--steps", 11)
    assert other.code == 2 and "--steps 11: the runs in" in other.err and "have 10" in other.err
    defeated = crem(capsys, *command, "--study=temperature", "--config.model.temperature=0.1")
    assert defeated.code == 2
    assert "takes 0.05 for the default of model.temperature, and the config has 0.1" in defeated.err
    unknown = crem(capsys, *command, "--config.optim.lrr=1")
    assert unknown.code == 2 and "optim.lrr" in unknown.err


@pytest.fixture(scope="module")
def toy_config():
    """`tiny_run.tiny_config` for every setting."""

    def config_of(setting: Setting):
        config = tiny_config(4)
        config.loss.elastic = 0.0
        return config

    return config_of


def test_runs_are_trained_asked_once_and_found_again(toy_config, tmp_path, monkeypatch):
    asked = []

    class Cheap:
        def __init__(self, model, scenes):
            self.model = model

        def scores(self, row, signs=False):
            asked.append(row.score_key)
            return dict.fromkeys(COLUMNS, cache_share(self.model, row.k, row.sinks))

    monkeypatch.setattr(ablation_runs, "ModelScores", Cheap)
    study = Study("s", "T", (Row("a", CREM), Row("b", CREM, k=2), Row("c", CREM, sinks=3)))
    runs = runs_of([study], tmp_path, 1)
    runs[0].directory.mkdir(parents=True)
    (runs[0].directory / "summary.json").write_text('{"scene_p1": 0.5}')  # of `crem eval`
    (done,) = ablation_runs.finish(runs, [study], toy_config, steps=2, scenes=4)
    assert asked == ["k=all,sinks=0", "k=2,sinks=0", "k=all,sinks=3"]
    shares = [row["scores"]["cache"][0] for row in collect(study, runs)["rows"]]
    assert shares[0] == 2 * shares[1] and shares[2] == pytest.approx(shares[0] * 7 / 4)

    assert not ablation_runs.pending(runs, [study])
    more = Study("m", "T", (Row("a", CREM), Row("d", CREM, k=1)))
    before = done.summary()
    list(ablation_runs.finish(runs, [study, more], toy_config, steps=2, scenes=4))
    assert asked[3:] == ["k=1,sinks=0"]
    assert before["scores"].items() < done.summary()["scores"].items()
    ablation_runs.check(runs, toy_config, 2)
    with pytest.raises(ValueError, match="another config"):
        ablation_runs.check(runs, toy_config, 3)


def scores_of(workdir: Path) -> dict:
    """Scores of all runs by their place."""
    found = sorted(workdir.glob(f"*/*/{SUMMARY}"))
    return {str(p.relative_to(workdir)): json.loads(p.read_text())["scores"] for p in found}


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path, compiled):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(compiled)}
    command = [sys.executable, "-m", "crem_jax", "ablate", f"--config={CONFIG}:smoke"]
    command += ["--study", "qa", "--seeds", "1", "--steps", "6", "--scenes", "4", "--workdir"]

    def start(workdir: Path) -> subprocess.Popen:
        place = Path(CONFIG).parents[1]
        return subprocess.Popen(
            [*command, workdir], env=environment, cwd=place, stdout=subprocess.DEVNULL
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait() == 0
    process = start(broken)
    second = broken / "crem+heterogeneous" / "0" / "checkpoints" / "2"
    while not second.is_dir():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = (broken / "crem" / "0" / SUMMARY).stat().st_mtime_ns
    assert start(broken).wait() == 0
    assert (broken / "crem" / "0" / SUMMARY).stat().st_mtime_ns == before
    assert scores_of(broken) == scores_of(whole) and len(scores_of(whole)) == 2
    made_with = json.loads((second.parents[1] / "recipe.json").read_text())["made_with"]
    assert made_with[0]["from_step"] == 0 and made_with[1]["from_step"] >= 2
    assert (broken / "table-qa.png").stat().st_size > 1000
