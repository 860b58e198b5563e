"""`crem plan` compiles the real shapes, and what it reads off the compiled step is right."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from crem_jax.chips import CHIPS
from crem_jax.config import ConfigError, ModelConfig
from crem_jax.configs import qwen2_vl
from crem_jax.configs.schema.data import BucketSpec
from crem_jax.data.batches.stream import Stream
from crem_jax.flops import model_flops
from crem_jax.plan import report
from crem_jax.plan.batch import SEQUENCE, abstract_batch, check_fits, packed_spec
from crem_jax.plan.compile import Plan, _collectives, check_chunk, out_of_memory
from crem_jax.plan.hlo import collectives
from crem_jax.plan.pods import Pod, find_pod
from crem_jax.plan.roofline import estimate
from crem_jax.plan.sweep import meshes, sweep
from crem_jax.train.objective.joint_loss import LossConfig
from tests.support import toy

ROOT = Path(__file__).parents[2]

HLO = """\
HloModule jit_step, is_scheduled=true

%fused (p: bf16[8,4]) -> bf16[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %ag = bf16[8,16]{1,0} all-gather(bf16[8,4]{1,0} %p), channel_id=3, dimensions={1}
}

%clone (p: bf16[8,4]) -> bf16[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %ag = bf16[8,16]{1,0} all-gather(bf16[8,4]{1,0} %p), channel_id=3, dimensions={1}
}

%body (arg: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %arg = (s32[], bf16[8,4]{1,0}) parameter(0)
  %f = bf16[8,16]{1,0} fusion(bf16[8,4]{1,0} %x), kind=kCustom, calls=%fused
  %g = bf16[8,16]{1,0} fusion(bf16[8,4]{1,0} %x), kind=kCustom, calls=%clone
  %s = f32[2,4]{1,0:T(8,128)} reduce-scatter(f32[8,4]{1,0} %y), to_apply=%add, dimensions={0}
}

%cond (arg: (s32[], bf16[8,4])) -> pred[] {
  %c = s32[]{:T(128)} constant(28)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], bf16[8,4]) while(%t), condition=%cond, body=%body
  %r = (f32[4]{0}, f32[4]{0}) all-reduce-start(f32[4]{0} %a), to_apply=%add
  %d = f32[4]{0} all-reduce-done((f32[4]{0}, f32[4]{0}) %r)
}
"""


def test_collectives_are_counted_as_often_as_their_loops_run():
    found = {each.kind: (each.count, each.bytes) for each in collectives(HLO)}
    assert found == {
        "all-gather": (28, 28 * 8 * 16 * 2),
        "reduce-scatter": (28, 28 * 8 * 4 * 4),
        "all-reduce": (1, 4 * 4),
    }


def test_the_planned_batch_has_the_shapes_of_a_real_one():
    real = Stream({"toy": toy.Toy()}, toy.SPEC, toy.prompter(), seed=0).batch(0)
    planned = abstract_batch(toy.SPEC, toy.config(), None)
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(planned), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype) == (np.shape(b), np.asarray(b).dtype)


def test_a_packed_sequence_is_refused_where_the_model_cannot_hold_it():
    with pytest.raises(ConfigError, match="1280 slots cannot hold 4096 vision tokens"):
        vision = toy.config().vision
        check_fits(toy.config().replace(vision=type(vision)(**{**vars(vision), "merge_size": 1})))


@pytest.mark.parametrize("topology", ["v5e", "v9:2x2", "v5e:2x", "16x16"])
def test_an_unknown_topology_is_named(topology):
    with pytest.raises(ConfigError, match=f"--topology '{topology}' is not KIND:SIZE"):
        find_pod(topology)


def test_a_step_is_bound_by_its_slowest_side():
    chip, bucket = CHIPS["v5e"], BucketSpec(**{**vars(SEQUENCE), "rows": 8})
    model = _model_2b()
    free = estimate(model, [bucket], chip, 2, 0, 0, LossConfig())
    assert 0.5 < free.utilisation <= 1
    assert free.utilisation * free.seconds * chip.flops == pytest.approx(
        model_flops(model, [bucket]).training() / 2
    )
    linked = estimate(model, [bucket], chip, 2, 1e12, 0, LossConfig())
    assert linked.seconds == pytest.approx(5.0)
    frozen = estimate(model, [bucket], chip, 2, 0, 0, LossConfig(), {"backbone/embedding": 1.0})
    assert frozen.seconds < free.seconds


def test_chunks_cost_another_forward_pass_of_contexts_and_of_pictures_that_are_not_kept():
    chip, bucket, model = CHIPS["v5e"], BucketSpec(**{**vars(SEQUENCE), "rows": 8}), _model_2b()
    still = {"backbone/layers/q/kernel": 1.0, "backbone/embedding": 1.0, "vision/patch_kernel": 0.0}

    def executed(**loss) -> dict[str, float]:
        guess = estimate(model, [bucket], chip, 2, 0, 0, LossConfig(**loss), still)
        return {part.name: part.flops for part in guess.parts}

    whole, chunks = executed(), dict(chunk_rows=(("sequence", 4),))
    context = dataclasses.replace(bucket, target_slots=0, answers=0)
    forward = model_flops(model, [context])
    more = {name: flops - whole[name] for name, flops in executed(**chunks).items()}
    assert more["text"] == pytest.approx(forward.text / 2)
    assert more["vision"] == pytest.approx(forward.vision / 2)
    assert more["attention"] == pytest.approx((forward.attention + forward.vision_attention) / 2)
    assert more["head"] == more["optimizer"] == 0
    kept = executed(**chunks, cache_vision=True)
    assert kept["vision"] == whole["vision"] and kept["text"] > whole["text"]
    assert executed(**chunks, retrieval=0.0) == whole


def _model_2b() -> ModelConfig:
    return ModelConfig.from_dict(
        {
            **toy.config().to_dict(),
            "text": qwen2_vl.TEXT["2b"],
            "vision": qwen2_vl.VISION,
            "num_chorus": 16,
            "first_chorus_id": 151_657,
            "remat": "full",
        }
    )


def test_a_global_batch_is_so_many_sequences_a_chip():
    spec = packed_spec(1024)
    assert spec.buckets["sequence"].rows == spec.queries == spec.candidates == 1024


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        (
            "total memory required for HLO temporaries (30.16G) exceeds available HBM (15.75G)",
            30.16,
        ),
        ("Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.", 0.5),
        ("something else", float("inf")),
    ],
)
def test_what_does_not_fit_says_how_much_it_needs(text, needs):
    assert out_of_memory(RuntimeError(f"RESOURCE_EXHAUSTED: {text}")) == needs
    with pytest.raises(RuntimeError, match="INTERNAL"):
        out_of_memory(RuntimeError(f"INTERNAL: {text}"))


def test_a_program_that_cannot_be_read_still_has_a_plan():
    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    assert _collectives(Unreadable()) is None
    chip, bucket = CHIPS["v6e"], BucketSpec(**{**vars(SEQUENCE), "rows": 8})
    guess = estimate(_model_2b(), [bucket], chip, 2, 0, 0, LossConfig())
    plan = dataclasses.replace(PLAN, peak=9.0, arguments=1.0, temporary=8.0, estimate=guess)
    pod = Pod("v6e:1x2", chip, 2, [None, None])
    text, figures = report.text(plan, pod), json.loads(json.dumps(report.figures(plan, pod)))
    assert "links     unknown" in text and "hidden" not in text
    assert figures["collectives"] is figures["estimated_utilisation_nothing_hidden"] is None
    assert figures["estimated_utilisation"] > 0.5


PLAN = Plan((1, 2, 1), 4.0, 3e12, 20.0, 30.0, 2.5, needs=33.0)


def test_a_plan_that_does_not_fit_has_every_key_and_says_what_is_known():
    pod = Pod("v6e:1x2", CHIPS["v6e"], 2, [None, None])
    figures = json.loads(json.dumps(report.figures(PLAN, pod)))
    assert not figures["fits"] and figures["peak_hbm_gib"] == 33
    assert figures["model_tflop_per_chip"] == 3
    assert figures["compile_cpu_seconds"] == 30 and figures["host_peak_rss_gb"] == 2.5
    assert figures["estimated_utilisation"] is figures["parts"] is None
    guess = estimate(_model_2b(), [SEQUENCE], pod.chip, 2, 0, 0, LossConfig())
    fits = dataclasses.replace(PLAN, peak=9.0, collectives=(), estimate=guess)
    assert set(report.figures(fits, pod)) == set(figures)
    assert "needs at least 33.00 of 32 GiB" in report.text(PLAN, pod)


@pytest.mark.parametrize(
    ("chunk", "batch", "mesh", "reason"),
    [
        (3, 4, (1, 8, 1), "--chunk 3 does not divide --per_chip_batch 4"),
        (2, 0, (1, 8, 1), "--chunk counts packed sequences"),
        (1, 2, (1, 8, 1), "--chunk 1 makes 4 sequences on 4 chips, .* 8 devices"),
        (1, 2, (1, 4, 2), None),
        (3, 2, (1, 8, 1), None),
    ],
)
def test_chunks_that_cut_a_batch_unevenly_are_refused(chunk, batch, mesh, reason):
    if reason is None:
        check_chunk(chunk, batch, 4, mesh)
        return
    with pytest.raises(ConfigError, match=reason):
        check_chunk(chunk, batch, 4, mesh)


def test_a_sweep_tries_meshes_that_use_every_device():
    for devices in (4, 16, 256):
        shapes = meshes(devices)
        assert all(np.prod(shape) == devices for shape in shapes)
        assert len(set(shapes)) == len(shapes) >= 2


def test_a_sweep_leaves_out_what_does_not_divide(monkeypatch):
    def plan(config, pod, batch, chunk, mesh):
        if batch % 2 or mesh[2] == 2:
            raise ConfigError(f"{batch} does not divide")
        return dataclasses.replace(
            PLAN, mesh=mesh, sequences=batch, peak=1.0 if batch < 8 else None
        )

    monkeypatch.setattr("crem_jax.plan.sweep.plan", plan)
    pod = Pod("v5e:2x4", CHIPS["v5e"], 8, [None] * 8)
    found = [(plan.mesh, plan.sequences, plan.fits) for plan in sweep(None, pod)]
    sizes = [(2, True), (4, True), (8, False)]
    assert found == [(mesh, *each) for mesh in ((1, 8, 1), (4, 2, 1)) for each in sizes]
    with pytest.raises(ConfigError, match="12 does not divide"):
        monkeypatch.setattr("crem_jax.plan.sweep.meshes", lambda devices: [(1, 4, 2)])
        list(sweep(None, pod, first=3))


@pytest.mark.slow
def test_a_step_compiles_for_a_pod_that_is_not_there():
    """Needs libtpu, which the `dev` extra holds."""
    assert importlib.util.find_spec("libtpu"), "pip install 'crem_jax[dev]'"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "crem_jax", "plan", "--topology=v5e:2x2", "--json"]
    command.append(f"--config={ROOT / 'configs' / 'qwen2_vl_2b.py'}:smoke")
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["fits"] and figures["chips"] == 4
    assert 0 < figures["peak_hbm_gib"] < 1
    assert figures["temporary_gib"] > 0 and figures["model_tflop_per_chip"] > 0
    assert figures["collectives"]["all-gather"]["count"] > 0
    assert 0 < figures["estimated_utilisation"] < 1
    assert figures["compile_cpu_seconds"] > 0 and figures["host_peak_rss_gb"] > 0
