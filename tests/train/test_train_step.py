"""One training step: what it compresses, what it learns from, and how it is laid out."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crem_jax import trees
from crem_jax.config import ConfigError
from crem_jax.configs.schema.optim import OptimConfig
from crem_jax.data.batches.stream import Stream
from crem_jax.model import crem
from crem_jax.model.pooling import pool_traced
from crem_jax.train.objective import cross_entropy, joint_loss
from crem_jax.train.objective.info_nce import info_nce
from crem_jax.train.objective.step import LossConfig, TrainState, init_params, loss_fn, train_step
from crem_jax.train.optim import decay_mask, make_optimizer, schedule
from crem_jax.types import Batch
from tests.support import toy
from tests.support.tiny_run import tiny_config

KEY = jax.random.key(5)
FULL = LossConfig(temperature=0.1)
PLAIN = dataclasses.replace(FULL, elastic=0.0, symmetric=False)
OPTIM = dataclasses.replace(
    OptimConfig(**tiny_config().optim), lr=3e-3, warmup=0, decay="linear", final=1.0
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return Stream({"toy": toy.Toy()}, toy.SPEC, toy.prompter(), seed=0).batch(0)


@pytest.fixture(scope="module")
def params(seed):
    make = functools.partial(init_params, toy.config(), FULL)
    return jax.tree.map(
        lambda x: 2 * x, jax.jit(lambda key: unboxed(make(key)))(jax.random.key(seed))
    )


def unboxed(tree):
    return jax.tree.map(lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, "names"))


@functools.partial(jax.jit, static_argnames="loss")
def value(params, batch, key, loss: LossConfig):
    return loss_fn(params, batch, key, toy.config(), loss)


@pytest.fixture(scope="module")
def memories(params, batch):
    compress = jax.jit(crem.compress, static_argnums=0)
    return {n: compress(toy.config(), params, c) for n, c in sorted(batch.contexts.items())}


def trained(params, batch, steps: int, loss: LossConfig) -> tuple[list[dict], TrainState]:
    optimizer = make_optimizer(OPTIM, steps)
    update = jax.jit(
        functools.partial(
            train_step,
            seed=0,
            model=toy.config(),
            loss=loss,
            optimizer=optimizer,
            learning_rate=schedule(OPTIM, steps),
        )
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    history = []
    for _ in range(steps):
        state, metrics = update(state, batch)
        history.append(jax.device_get(metrics))
    return history, state


@pytest.fixture(scope="module")
def history(params, batch):
    """Twenty steps on one batch, temperature learnt."""
    loss = dataclasses.replace(FULL, learn_temperature=True)
    start = {**params, "loss": {"log_temperature": jnp.log(jnp.float32(0.1))}}
    return trained(start, batch, 20, loss)


def test_twenty_steps_on_one_batch_lower_both_losses(history):
    metrics, state = history
    for name in ("loss", "retrieval", "generation"):
        assert metrics[-1][name] < 0.75 * metrics[0][name], name
    assert int(state.step) == 20
    assert metrics[0]["learning_rate"] == pytest.approx(3e-3)
    assert all(np.isfinite(list(m.values())).all() for m in metrics)


def test_a_learnt_temperature_starts_where_it_is_told_and_moves(history):
    metrics, state = history
    assert metrics[0]["temperature"] == pytest.approx(0.1)
    assert max(abs(m["temperature"] - 0.1) for m in metrics) > 1e-4  # it may come back
    assert set(state.params) == {"backbone", "vision", "loss"}


def test_a_learnt_temperature_that_leaves_its_bounds_is_led_back_to_them():
    for start, end in ((-9.0, 0.005), (0.4, 1.0), (-2.0, np.exp(-2.0))):
        params = {"w": 1, "loss": {"log_temperature": jnp.float32(start)}}
        got = joint_loss.bounded(params)
        assert np.exp(got["loss"]["log_temperature"]) == pytest.approx(end)
        assert got["w"] == 1
    assert joint_loss.bounded({"w": 1}) == {"w": 1}
    chorus = {"text": jnp.eye(4)[:, None]}
    rows, hashes = jnp.arange(4), jnp.arange(1, 9, dtype=jnp.uint32).reshape(4, 2)
    batch = Batch({}, {}, rows, hashes[:, None], rows, hashes)
    randomness = joint_loss.StepRandomness(None, None, {}, {})

    def loss(log_temperature):
        return joint_loss.retrieval(log_temperature, chorus, batch, randomness, PLAIN)[0]

    assert jax.grad(loss)(jnp.float32(0.4)) > 0  # beyond a bound there is a way back


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(retrieval=-1.0), r"loss\.retrieval = -1\.0 must be a number of at least 0"),
        (dict(generation=np.inf), r"loss\.generation = inf must be a number"),
        (dict(z_loss=np.nan), r"loss\.z_loss = nan must be"),
        (dict(p_compressed=1.5), r"loss\.p_compressed = 1\.5 is not in 0\.\.1"),
        (dict(elastic=-0.1), r"loss\.elastic = -0\.1 is not in 0\.\.1"),
        (dict(temperature=0.0), r"model\.temperature = 0\.0 must be a number above 0"),
        (dict(temperature=np.inf), r"model\.temperature = inf must be"),
        (
            dict(temperature=2.0, learn_temperature=True),
            r"2\.0 is not in 0\.005\.\.1\.0, the bounds",
        ),
        (dict(temperature=0.001, learn_temperature=True), r"0\.001 is not in 0\.005\.\.1\.0"),
    ],
)
def test_a_loss_out_of_its_range_is_refused_by_its_key(values, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**values)


def test_metrics_name_every_part_and_the_loss_is_their_weighted_sum(params, batch):
    loss = dataclasses.replace(FULL, retrieval=0.5, generation=2.0)
    total, metrics = value(params, batch, KEY, loss)
    expected = 0.5 * metrics["retrieval"] + 2 * metrics["generation"]
    np.testing.assert_allclose([total, metrics["loss"]], expected, rtol=1e-6)
    assert "temperature" not in metrics


def generation_by_hand(params, batch, memories, z: bool) -> float:
    """Mean over samples of the mean over their answer tokens, native or compressed."""
    target = batch.targets["picture"]
    rows = jnp.full(len(target.tokens), z)

    @jax.jit
    def losses(params):
        hidden, _ = crem.decode(toy.config(), params, memories["picture"], target, rows)
        hidden = jnp.take_along_axis(hidden, target.answer_slot[..., None], axis=1)
        return cross_entropy.plain(crem.logits(toy.config(), params, hidden), target.answer).loss

    real = target.answer >= 0
    each = np.asarray(losses(params))
    return float(np.mean([each[i][real[i]].mean() for i in range(len(each)) if real[i].any()]))


@pytest.mark.parametrize(("p", "kind"), [(0.0, "native"), (1.0, "compressed")])
def test_p_compressed_of_zero_or_one_trains_one_mode_alone(params, batch, memories, p, kind):
    _, metrics = value(params, batch, KEY, dataclasses.replace(PLAIN, p_compressed=p))
    other = {"native": "compressed", "compressed": "native"}[kind]
    expected = generation_by_hand(params, batch, memories, z=bool(p))
    np.testing.assert_allclose(metrics["generation"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics[f"generation_{kind}"], expected, rtol=1e-5)
    assert np.isnan(metrics[f"token_accuracy_{other}"])


def retrieval_by_hand(batch, memories, k, symmetric: bool) -> float:
    vectors = np.concatenate([pool_traced(memory.chorus, k) for memory in memories.values()])
    named = batch.positive_hash, batch.candidate_hash
    valid = batch.query_row >= 0, batch.candidate_row >= 0
    chosen = vectors[batch.query_row], vectors[batch.candidate_row]
    return float(info_nce(*chosen, *named, *valid, 0.1, symmetric)[0])


def test_elastic_retrieval_weighs_the_whole_chorus_and_a_random_part_of_it(params, batch, memories):
    whole = retrieval_by_hand(batch, memories, 4, True)
    parts = [retrieval_by_hand(batch, memories, k, True) for k in (1, 2, 3, 4)]
    assert len({round(part, 4) for part in parts}) == 4
    possible = [0.7 * whole + 0.3 * part for part in parts]
    seen = set()
    for number in range(16):
        loss = dataclasses.replace(FULL, elastic=0.3, elastic_k="uniform")
        _, metrics = value(params, batch, jax.random.key(number), loss)
        nearest = int(np.argmin(np.abs(np.array(possible) - metrics["retrieval"])))
        np.testing.assert_allclose(metrics["retrieval"], possible[nearest], rtol=1e-5)
        seen.add(nearest)
    assert len(seen) >= 3
    rigid = value(params, batch, KEY, dataclasses.replace(PLAIN, symmetric=True))[1]
    np.testing.assert_allclose(rigid["retrieval"], whole, rtol=1e-5)


def test_elastic_retrieval_by_halves_weighs_the_whole_and_all_of_them(params, batch, memories):
    whole, *parts = (retrieval_by_hand(batch, memories, k, True) for k in (4, 4, 2, 1))
    loss = dataclasses.replace(FULL, elastic=0.3, elastic_k="halves")
    for number in range(2):
        _, metrics = value(params, batch, jax.random.key(number), loss)
        np.testing.assert_allclose(
            metrics["retrieval"], 0.7 * whole + 0.3 * np.mean(parts), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("how", "shares"),
    [
        ("uniform", [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ("halves", [1 / 3, 1 / 3, 0, 1 / 3]),
        ("short", [12 / 25, 6 / 25, 4 / 25, 3 / 25]),
    ],
)
def test_random_k_is_drawn_from_one_to_all(how, shares):
    drawn = np.asarray(joint_loss._random_k(KEY, (8000,), 4, how))
    counts = np.bincount(drawn, minlength=6)
    assert counts[0] == counts[5] == 0
    np.testing.assert_allclose(counts[1:5] / 8000, shares, atol=0.03)
    with pytest.raises(ConfigError, match="elastic_k 'long' is not one of uniform, halves, short"):
        LossConfig(elastic_k="long")


@pytest.mark.parametrize(
    ("arm", "kept", "left_out"),
    [("retrieval", "generation", "retrieval"), ("generation", "retrieval", "generation")],
)
def test_a_loss_of_weight_zero_leaves_its_part_out_of_the_step(batch, params, arm, kept, left_out):
    loss = dataclasses.replace(PLAIN, **{arm: 0.0})
    total, metrics = jax.eval_shape(lambda p: loss_fn(p, batch, KEY, toy.config(), loss), params)
    assert kept in metrics
    assert not [name for name in metrics if name.startswith(left_out)]
    whole, part = (dots(params, batch, one) for one in (PLAIN, loss))
    assert part < whole
    assert total.shape == ()


def equations(jaxpr):
    """Every equation, those inside scans and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def dots(params, batch, loss, shape: tuple[int, ...] | None = None) -> int:
    """Matrix products in the loss; with `shape`, those with an operand of that shape."""
    made = jax.make_jaxpr(lambda p: loss_fn(p, batch, KEY, toy.config(), loss)[0])(params)
    return sum(
        equation.primitive.name == "dot_general"
        and (shape is None or any(v.aval.shape == shape for v in equation.invars))
        for equation in equations(made.jaxpr)
    )


def test_a_context_is_compressed_once_for_both_losses(batch, params, monkeypatch):
    compressed = []
    compress = crem.compress

    def counted(config, params, context, vision=None):
        compressed.append(context.tokens.shape)
        return compress(config, params, context, vision)

    monkeypatch.setattr(crem, "compress", counted)
    jax.eval_shape(lambda p: loss_fn(p, batch, KEY, toy.config(), FULL), params)
    assert sorted(compressed) == sorted(c.tokens.shape for c in batch.contexts.values())
    patches = batch.contexts["picture"].patches.pixels.shape
    assert dots(params, batch, FULL, patches) == 1


def test_weight_decay_falls_on_matrices_and_tables_alone(params):
    tree = {**params, "loss": {"log_temperature": jnp.zeros(())}}
    decayed = {path for path, yes in trees.flatten(decay_mask(tree)).items() if yes}
    for path, leaf in trees.flatten(tree).items():
        name = path.split("/")[-1]
        if name in ("scale", "bias", "log_temperature"):
            assert path not in decayed
        else:
            assert path in decayed
            assert np.ndim(leaf) >= 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_gradients_decayed_parameters_shrink_and_the_others_stay(params, name):
    optim = dataclasses.replace(OPTIM, name=name, lr=0.1, adam_lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(optim, 10)

    @jax.jit
    def idle(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    after, decayed = trees.flatten(idle(params)), trees.flatten(decay_mask(params))
    for path, before in trees.flatten(params).items():
        expected = before * (0.95 if decayed[path] else 1.0)
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, err_msg=path)


def test_warm_up_rises_to_the_rate_and_decay_ends_at_its_share():
    config = dataclasses.replace(OPTIM, warmup=5, decay="cosine", final=0.1)
    rate = schedule(config, 50)
    rates = [float(rate(step)) for step in range(51)]
    assert 0 < rates[0] < rates[2] < 3e-3
    assert max(rates) == pytest.approx(3e-3)
    assert rates[50] == pytest.approx(3e-4, rel=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))
    with pytest.raises(ValueError, match=r"optim\.decay 'steps' is not one of cosine, linear"):
        dataclasses.replace(OPTIM, decay="steps")


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(params, batch):
    broken = dataclasses.replace(PLAIN, temperature=1e-45, generation=0.0)
    history, state = trained(params, batch, 2, broken)
    assert [metrics["finite"] for metrics in history] == [0, 0]
    assert state.step == 2
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    fresh = make_optimizer(OPTIM, 2).init(params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh)
