"""Answers token by token: transformers' `generate` is the oracle, and a plain greedy loop."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crem_jax.config import STYLES
from crem_jax.data.inputs.padding import pad_contexts
from crem_jax.errors import CremError
from crem_jax.inference import decoding
from crem_jax.inference import model as api
from crem_jax.inference.batches import plan_batches
from crem_jax.inference.model import Model
from crem_jax.inference.sampling import Sampling, next_token
from crem_jax.model.decoder import empty_cache
from crem_jax.types import Memory, Target
from tests.support import hf_models as hf
from tests.support import samples

PROMPTS, SLOTS, PATCHES, WIDTH, NEW = 20, 32, 32, 8, 8
GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class Asked:
    """A batch of questions of different lengths: its rows, memory, tokens and valid [B, WIDTH]."""

    oracle: hf.Oracle
    rows: list[samples.Row]
    memory: Memory
    tokens: np.ndarray
    valid: np.ndarray

    def answer(self, memory: Memory, sampling: Sampling = GREEDY) -> np.ndarray:
        """int32 [B, NEW]."""
        o = self.oracle
        out = decoding.generate(o.config, o.params, memory, self.tokens, self.valid, sampling, NEW)
        return np.asarray(out)


def ask(oracle: hf.Oracle, rows: list[samples.Row]) -> Asked:
    contexts = [row.halves()[0] for row in rows]
    context = pad_contexts(contexts, oracle.config, SLOTS, PATCHES)
    tokens = np.full((len(rows), WIDTH), samples.END, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.target)] = row.target
    lengths = np.array([len(row.target) for row in rows])
    memory = hf.compress(oracle.config, oracle.params, context)
    return Asked(oracle, rows, memory, tokens, np.arange(WIDTH) < lengths[:, None])


both = pytest.mark.parametrize("oracle", STYLES, indirect=True, scope="module")
"""Runs a test on Qwen2.5-VL too; the others need one backbone."""


@pytest.fixture(scope="module", params=STYLES[:1])
def oracle(request, seed, tmp_path_factory):
    return hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), request.param)


@pytest.fixture(scope="module")
def rows(seed):
    rng = np.random.default_rng(seed)
    kinds = [(), ((2, 2),), ((2, 4),), ((4, 2), (2, 2)), ((4, 4), (2, 6))]
    return [
        samples.random_row(rng, kinds[i % len(kinds)], *rng.integers(1, WIDTH, 2))
        for i in range(PROMPTS)
    ]


@pytest.fixture(scope="module")
def asked(oracle, rows):
    return ask(oracle, rows)


@pytest.fixture(scope="module")
def compressed(asked):
    return asked.answer(asked.memory.chorus_only())


def until_end(tokens) -> list[int]:
    """The answer with the token that ends it."""
    kept = []
    for token in tokens:
        kept.append(int(token))
        if token in (samples.END, samples.IM_END):
            break
    return kept


def torch_answer(oracle: hf.Oracle, row: samples.Row) -> list[int]:
    """transformers' greedy answer to one prompt alone."""
    chorus = oracle.config.chorus_ids
    alone = samples.whole([row], chorus, len(row.sequence(chorus)[0]), PATCHES, "left")
    inputs = hf.torch_inputs(alone, oracle.config)
    out = oracle.torch_model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=[samples.IM_END, samples.END],
        pad_token_id=samples.END,
        suppress_tokens=list(chorus) or None,
    )
    return out[0, alone.tokens.shape[1] :].tolist()


@both
def test_native_answers_equal_transformers_generate_token_by_token(oracle, asked):
    got = asked.answer(asked.memory)
    expected = [torch_answer(oracle, row) for row in asked.rows]
    assert [until_end(tokens) for tokens in got] == expected
    assert len({tuple(answer) for answer in expected}) > PROMPTS // 4


def test_a_plain_backbone_answers_like_transformers(oracle, rows):
    plain = dataclasses.replace(
        oracle, config=oracle.config.replace(num_chorus=0, first_chorus_id=-1)
    )
    asked = ask(plain, rows[:5])
    expected = [torch_answer(plain, row) for row in rows[:5]]
    assert [until_end(tokens) for tokens in asked.answer(asked.memory)] == expected


def greedy_loop(asked: Asked, z: bool) -> np.ndarray:
    """One token at a time over the whole memory, the mask alone hiding the context."""
    o, batch = asked.oracle, len(asked.rows)
    z = jnp.full((batch,), z)
    none = jnp.zeros((batch, 1), jnp.int32)
    cache = empty_cache(asked.memory, WIDTH + NEW)
    tokens, valid, answer = asked.tokens, asked.valid, []
    done = np.zeros(batch, bool)
    while len(answer) < NEW:
        target = Target(tokens=tokens, valid=valid, answer_slot=none, answer=none)
        hidden, cache = hf.decode(o.config, o.params, asked.memory, target, z, cache)
        scores = np.array(hf.logits(o.config, o.params, hidden))
        scores = scores[np.arange(batch), valid.sum(axis=1).clip(1) - 1]
        scores[:, list(o.config.chorus_ids)] = -np.inf
        chosen = np.where(done, samples.END, scores.argmax(axis=1))
        answer.append(chosen)
        tokens, valid = chosen[:, None].astype(np.int32), ~done[:, None]
        done |= np.isin(chosen, (samples.END, samples.IM_END))
        valid = ~done[:, None]
    return np.stack(answer, axis=1)


@both
def test_compressed_answers_without_the_context_equal_masked_answers_with_it(asked, compressed):
    np.testing.assert_array_equal(compressed, greedy_loop(asked, z=True))


@both
def test_native_answers_equal_the_same_loop_unmasked(asked, compressed):
    native = asked.answer(asked.memory)
    np.testing.assert_array_equal(native, greedy_loop(asked, z=False))
    assert (native != compressed).any()


def test_answers_from_k_chorus_tokens_equal_a_truncated_memory(asked, compressed):
    few = asked.answer(asked.memory.chorus_only(2))
    truncated = dataclasses.replace(asked, memory=asked.memory.truncate(2))
    np.testing.assert_array_equal(few, greedy_loop(truncated, z=True))
    assert (few != compressed).any()


def test_an_answer_does_not_depend_on_its_neighbours_or_padding(oracle, asked):
    order = np.arange(PROMPTS)[::-1]
    other = ask(oracle, [asked.rows[i] for i in order])
    np.testing.assert_array_equal(other.answer(other.memory)[order], asked.answer(asked.memory))


def test_what_follows_the_end_is_padding(asked):
    for answer in asked.answer(asked.memory, Sampling(np.float32(3), np.float32(1), np.int32(1))):
        kept = until_end(answer)
        assert (answer[len(kept) :] == samples.END).all()


def test_temperature_zero_is_greedy_whatever_top_p_and_seed(asked, compressed):
    sampling = Sampling(np.float32(0), np.float32(0.3), np.int32(9))
    np.testing.assert_array_equal(asked.answer(asked.memory.chorus_only(), sampling), compressed)


@pytest.mark.parametrize("top_p", [1e-6, 0.0])
def test_a_vanishing_nucleus_is_greedy(asked, compressed, top_p):
    sampling = Sampling(np.float32(1), np.float32(top_p), np.int32(9))
    np.testing.assert_array_equal(asked.answer(asked.memory.chorus_only(), sampling), compressed)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(asked):
    memory = asked.memory.chorus_only()
    first, again, other = (
        asked.answer(memory, Sampling(np.float32(1), np.float32(1), np.int32(seed)))
        for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3


def test_chorus_tokens_are_never_generated(oracle, asked):
    """Even if their rows of the head are the loudest."""
    backbone = dict(oracle.params["backbone"])
    table = "head" if "head" in backbone else "embedding"
    chorus = np.array(oracle.config.chorus_ids)
    backbone[table] = backbone[table].at[chorus].multiply(100.0)
    loud = {**oracle.params, "backbone": backbone}
    hidden = asked.memory.chorus.reshape(-1, oracle.config.text.hidden_size)
    best = np.asarray(hf.logits(oracle.config, loud, hidden)).argmax(axis=1)
    assert np.isin(best, chorus).mean() > 0.5
    model = dataclasses.replace(asked, oracle=dataclasses.replace(oracle, params=loud))
    for sampling in (GREEDY, Sampling(np.float32(2), np.float32(1), np.int32(3))):
        assert not np.isin(model.answer(asked.memory, sampling), chorus).any()


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.8, 1.0])
def test_sampling_keeps_to_the_nucleus_and_its_shares(rng, top_p):
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1]))[rng.permutation(4)].astype(np.float32)
    draws = np.asarray(
        next_token(jnp.tile(logits, (20_000, 1)), jax.random.key(3), jnp.float32(1), top_p)
    )
    share, order = np.exp(logits), np.argsort(-logits)
    before = np.cumsum(share[order]) - share[order]
    kept = order[before < top_p]
    expected = np.zeros(4)
    expected[kept] = share[kept] / share[kept].sum()
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 20_000, expected, atol=0.02)


@pytest.mark.parametrize(
    "values, complaint",
    [
        ({"temperature": -0.1}, "temperature = -0.1 is not a number of at least 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 1.5}, "top_p = 1.5 is not a number from 0 to 1"),
        ({"seed": 2**31}, r"seed = 2147483648 is not in -2147483648\.\.2147483647"),
    ],
)
def test_sampling_numbers_out_of_range_are_refused_by_name(model, values, complaint):
    with pytest.raises(CremError, match=complaint):
        Sampling(**values)
    with pytest.raises(CremError, match=complaint):
        model.generate([items()[0]], **values)


def test_sampling_of_any_number_type_is_traced_as_the_same_three_scalars():
    kinds = [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(Sampling(1, 1, True))]
    assert kinds == [(np.float32, ()), (np.float32, ()), (np.int32, ())]
    again = jax.jit(lambda sampling: sampling)(Sampling(0.5, np.float32(0.25), 7))
    assert [float(x) for x in jax.tree.leaves(again)] == [0.5, 0.25, 7]
    assert Sampling(0.5, 1.0, 3) == Sampling(np.float32(0.5), 1, np.int32(3)).for_batch()
    assert Sampling(1.0, seed=None).for_batch() != Sampling(1.0, seed=None).for_batch()


@pytest.fixture(scope="module")
def model(seed, tmp_path_factory):
    oracle = hf.oracle(tmp_path_factory.getbasetemp(), seed, bool(seed % 2), "qwen2_5_vl")
    vision = dataclasses.replace(oracle.config.vision, min_pixels=64, max_pixels=512)
    config = oracle.config.replace(vision=vision, system_prompt="")
    return Model(config, oracle.params, hf.tiny_tokenizer())


@functools.cache
def items() -> tuple[dict, ...]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return {"text": "abc"}, {"image": pixels, "text": "What is é?"}


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0, "seed": 5}, {"compressed": True, "k": 2}], ids=str
)
def test_streamed_pieces_make_the_generated_answer(model, options):
    """Of random bytes: pieces never cut a character in two."""
    item = items()[1]
    (whole,) = model.generate([item], max_new_tokens=NEW, **options)
    assert "".join(model.stream(item, max_new_tokens=NEW, **options)) == whole


def test_a_streamed_answer_comes_token_by_token(model, monkeypatch):
    monkeypatch.setattr(
        model.tokenizer, "decode", lambda ids, **_: "".join(chr(0x100 + i) for i in ids)
    )
    (whole,) = model.generate([items()[0]], max_new_tokens=NEW)
    pieces = [piece for piece in model.stream(items()[0], max_new_tokens=NEW) if piece]
    assert whole
    assert pieces == list(whole)


def test_a_batch_of_mixed_questions_is_answered_like_each_alone(model):
    short, picture = items()
    other = {**picture, "text": "How many?"}
    together = model.generate([picture, short, other], max_new_tokens=NEW)
    alone = [model.generate([item], max_new_tokens=NEW)[0] for item in (picture, short, other)]
    assert together == alone


def test_every_batch_of_a_call_draws_numbers_of_its_own(model, monkeypatch):
    """And the first those of the seed, as if it were alone."""
    monkeypatch.setattr(plan_batches, "__defaults__", (1, 2))
    monkeypatch.setattr(api, "MAX_ROWS", 2)
    question, how = items()[0], dict(max_new_tokens=NEW, temperature=1.0, seed=2**31 - 1)
    memory = model.compress([question] * 6)

    def ask(count: int, **how) -> list[str]:
        some = memory.take(np.arange(count))
        return model.ask(some, [question["text"]] * count, **how)

    for answers in (
        lambda count, **how: model.generate([question] * count, **how),
        ask,
    ):
        got = answers(6, **how)
        assert got == answers(6, **how)
        assert got[:2] == answers(2, **how)
        assert got[:2] != got[2:4] != got[4:] != got[:2]
        assert len(set(answers(6, **how | dict(temperature=0.0)))) == 1


def test_torch_is_asked_in_the_same_words(oracle, rows):
    """The oracle's own prompt is what our memory and question hold."""
    row = rows[3]
    whole = samples.whole([row], oracle.config.chorus_ids, 48, PATCHES, "left")
    ids = hf.torch_inputs(whole, oracle.config)["input_ids"][0]
    expected = torch.tensor([*row.context, *oracle.config.chorus_ids, *row.target])
    assert torch.equal(ids[-len(expected) :], expected)
