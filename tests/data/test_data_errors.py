"""What a record may raise is counted; every other error is a bug, and surfaces."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import traceback
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from crem_jax.configs.schema.data import BatchSpec, BucketSpec
from crem_jax.data.batches import packing
from crem_jax.data.batches.iterator import BatchIterator
from crem_jax.data.batches.stream import Stream
from crem_jax.data.images import decode, processor
from crem_jax.data.images.decode import PictureError, open_picture, peek
from crem_jax.data.inputs.padding import PromptError
from crem_jax.data.records import EmptySideError, Item, Record, RecordError
from crem_jax.data.sources import registry
from crem_jax.data.sources.base import read_record
from crem_jax.data.sources.formats.fields import paths_of
from crem_jax.data.sources.formats.tfds_layout import encode_record
from crem_jax.data.tools import inspect_record
from crem_jax.data.tools.doctor import examine
from crem_jax.data.tools.inspect_record import Limits
from crem_jax.data.tools.prepare import Plan, prepare
from crem_jax.data.tools.synthesize import synthesize
from crem_jax.data.tools.teachers import ModelTeacher
from crem_jax.errors import CremError
from crem_jax.train.loop import train
from crem_jax.train.run import recipe
from crem_jax.train.start import TOKENIZER_DIR
from tests.support import toy
from tests.support.tiny_run import tiny_config

SPEC = BatchSpec(
    buckets={"text": BucketSpec(24, 0, 40), "picture": BucketSpec(24, 16, 8)},
    candidates=16,
    records={"a": 4},
)


def wrong_shapes(*_, **__):
    """The bug that is planted: what numpy says of shapes that do not fit is a ValueError too."""
    return np.zeros((2, 3)) @ np.zeros((2, 3))


BUG = "matmul: Input operand 1 has a mismatch"


@dataclasses.dataclass(frozen=True)
class Failing:
    """Eight records of words; record 3 raises."""

    error: Exception

    def __len__(self) -> int:
        return 8

    def record(self, index: int, rng=None) -> Record:
        if index == 3:
            raise self.error
        return Record(f"r{index}", Item(f"word {index}"), (Item(f"and {index}"),))


@dataclasses.dataclass(frozen=True)
class Holding:
    """Eight records; record 3 has this query."""

    query: Callable[[], Item]

    def __len__(self) -> int:
        return 8

    def record(self, index: int, rng=None) -> Record:
        query = self.query() if index == 3 else Item(f"word {index}")
        return Record(f"r{index}", query, (Item(f"and {index}"),))


def batches(source, steps: int = 2, **options) -> BatchIterator:
    stream = Stream({"a": source}, SPEC, toy.prompter(), 0)
    return BatchIterator(stream, steps, max_bad_fraction=0.5, **options)


def skipped(source, tmp_path) -> set[str]:
    """The reasons in the log of an epoch."""
    log = tmp_path / "bad.jsonl"
    assert len(list(batches(source, log=log))) == 2
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["index"] for line in lines} == {3}
    return {line["reason"] for line in lines}


# the source


@pytest.mark.parametrize("error", [ValueError("no row"), OSError("no row"), RecordError("no row")])
def test_what_a_source_may_raise_is_a_bad_record(error, tmp_path):
    assert skipped(Failing(error), tmp_path) == {"no row"}
    with pytest.raises(CremError, match="no row"):
        read_record(Failing(error), 3)
    assert recipe.fingerprint(Failing(error))["records"] == 8


def test_an_error_of_a_record_keeps_its_own_class():
    with pytest.raises(EmptySideError):
        read_record(Failing(EmptySideError("nothing to learn")), 3)
    with pytest.raises(RecordError, match=r"^FileNotFoundError$"):
        read_record(Failing(FileNotFoundError()), 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_source_may_not_raise_ends_the_run_with_the_record_named(workers):
    with pytest.raises(KeyError) as met:
        list(batches(Failing(KeyError("label")), workers=workers))
    assert "while Failing read its record 3" in "".join(traceback.format_exception(met.value))


# what a record holds


def cut_off() -> Item:
    """A PIL image that nobody has decoded, of a file that ends too early."""
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    return Item("x", (Image.open(io.BytesIO(whole.getvalue()[:400])),))


@pytest.mark.parametrize(
    "query, reason",
    [
        (lambda: Item("half of \ud800 pair"), "a text cannot be tokenised; expected valid Unicode"),
        (lambda: Item(7), "an item's text is a int; expected a str"),
        (lambda: Item("x", (b"no picture",)), "<bytes>: is not a picture"),
        (lambda: Item("x", (3.5,)), "<float>: is not a picture"),
        (lambda: Item("x", (np.zeros((2, 2, 7), np.uint8),)), "is not a picture; expected [H, W"),
        (lambda: Item("x", (np.zeros((2, 2, 3), complex),)), "its values are of type complex"),
        (lambda: Item("x", ("no\0where.png",)), "no\0where.png: does not exist"),
        (cut_off, "is truncated or damaged"),
    ],
)
def test_content_that_cannot_be_used_is_a_bad_record(query, reason, tmp_path):
    (met,) = skipped(Holding(query), tmp_path)
    assert reason in met


@pytest.mark.parametrize(
    "error", [struct.error("unpack"), ValueError("bad"), SyntaxError("broken"), KeyError(274)]
)
def test_whatever_pillow_raises_is_a_picture_error(monkeypatch, error):
    def fail(*_, **__):
        raise error

    picture = toy.Toy(1).record(0, None).query.images[0]
    monkeypatch.setattr(decode.Image, "open", fail)
    for call in (open_picture, peek):
        with pytest.raises(PictureError, match=r"^<bytes>: is truncated or damaged"):
            call(b"encoded")
    monkeypatch.setattr(decode.Image.Image, "load", fail)
    with pytest.raises(PictureError, match="is truncated or damaged"):
        open_picture(Image.fromarray(picture))


def test_whatever_the_tokenizer_raises_is_a_prompt_error(monkeypatch):
    prompter = toy.prompter()

    def fail(*_, **__):
        raise Exception("Unk token `<unk>` not found in the vocabulary")

    monkeypatch.setattr(prompter, "tokenizer", fail)
    with pytest.raises(PromptError, match=r"cannot be tokenised.* begins 'a new text'"):
        prompter.user_tokens("a new text")


def test_a_path_with_a_nul_and_an_id_of_half_a_character_are_errors_of_the_record():
    with pytest.raises(RecordError, match="row 1 image has a NUL character"):
        paths_of("a\0.png", "root", "row 1 image")
    with pytest.raises(RecordError, match=r"the id of record 'r.udcff' is no valid Unicode"):
        encode_record(Record("r\udcff", Item("x")))


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"kind": "folder", "path": 5}, "path = 5: expected a text"),
        ({"kind": "scenes", "size": "big"}, "size = 'big': expected a whole number"),
        ({"kind": "scenes", "text": True}, "text = True: expected a number"),
        ({"kind": "folder", "path": ".", "bare": 1}, "bare = 1: expected true or false"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_its_key(arguments, complaint):
    with pytest.raises(CremError, match=f"^data.sources.a.{complaint}"):
        registry.make_source(arguments.pop("kind"), arguments, "data.sources.a")


# bugs


@pytest.mark.parametrize(
    "where, name",
    [
        (packing, "write_context"),
        (packing.BatchPacker, "_choose"),
        (packing.Batcher, "choose"),
        (packing.Batcher, "room"),
        (processor, "patchify"),
    ],
)
def test_a_bug_in_batching_packing_or_patches_ends_the_stream(monkeypatch, where, name):
    monkeypatch.setattr(where, name, wrong_shapes)
    source = toy.Toy(8)
    stream = Stream({"toy": source}, toy.SPEC, toy.prompter(), 0)
    with pytest.raises(ValueError, match=BUG) as met:
        next(BatchIterator(stream, 2, max_bad_fraction=1.0))
    assert not isinstance(met.value, CremError)


def test_a_bug_in_packing_ends_a_training_run(monkeypatch, tmp_path):
    monkeypatch.setattr(packing, "write_target", wrong_shapes)
    with pytest.raises(ValueError, match=BUG) as met:
        train(tiny_config(2), tmp_path)
    assert not isinstance(met.value, CremError)


def test_a_bug_in_the_construction_of_a_source_is_no_error_of_its_arguments(monkeypatch):
    class Broken:
        def __init__(self, **_):
            wrong_shapes()

    monkeypatch.setitem(registry.SOURCES, "emoji", Broken)
    with pytest.raises(ValueError, match=BUG) as met:
        registry.make_source("emoji", {})
    assert not isinstance(met.value, CremError)


def test_a_bug_ends_the_doctor_preparing_and_synthesis(monkeypatch, tmp_path):
    source = Failing(KeyError("label"))
    file = TOKENIZER_DIR / "tokenizer.json"
    with pytest.raises(KeyError) as met:
        examine(source, Limits(), file, workers=1)
    assert "in a worker process" in "".join(traceback.format_exception(met.value))
    with pytest.raises(KeyError):
        prepare(source, Plan("failing", 8), tmp_path / "out", workers=1)
    with pytest.raises(KeyError):
        synthesize(source, tmp_path / "out.jsonl", None, None)
    monkeypatch.setattr(inspect_record, "_inspect_picture", wrong_shapes)
    look = inspect_record.RecordInspector(toy.Toy(2), Limits(), str(file))
    with pytest.raises(ValueError, match=BUG):
        list(look((0, 2)))


def test_a_bug_of_the_model_is_no_answer_of_a_teacher():
    class Broken:
        generate = staticmethod(wrong_shapes)

    with pytest.raises(ValueError, match=BUG):
        ModelTeacher(Broken(), 1)([Item("what?")])
