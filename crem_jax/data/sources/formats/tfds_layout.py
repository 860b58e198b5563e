"""How `crem prepare` stores records: flat features that tfds reads without TensorFlow.

A record's items are its query, its positives, then its negatives.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from crem_jax.data.records import Item, Record, RecordError

NAME = "crem"
VERSION = "1.0.0"
LAYOUT = {
    "id": "names the record",
    "source": "the data set it came from",
    "texts": "of each item; empty where it has none",
    "hashes": "of each item: its content hash, 64 bits, signed",
    "picture_counts": "of each item: how many of the pictures are its own",
    "pictures": "of all items in order: encoded files",
    "positives": "how many of the items after the query are positives; the rest are negatives",
    "turns": "question, answer, question, answer, …",
    "metadata": "JSON",
}
"""feature: what it holds."""

LATER = {"metadata"}
"""Features that data sets of earlier versions lack."""


def layout_features() -> Any:
    """The tfds FeaturesDict of LAYOUT."""
    import numpy as np
    import tensorflow_datasets as tfds

    many = tfds.features.Sequence
    encoded = tfds.features.Tensor(shape=(), dtype=np.object_)
    kinds = {
        "id": tfds.features.Text(),
        "source": tfds.features.Text(),
        "texts": many(tfds.features.Text()),
        "hashes": many(np.int64),
        "picture_counts": many(np.int64),
        "pictures": many(encoded),
        "positives": np.int64,
        "turns": many(tfds.features.Text()),
        "metadata": tfds.features.Text(),
    }
    return tfds.features.FeaturesDict({name: kinds[name] for name in LAYOUT})


def write_info(directory: Path, split: str, lengths: list[int], size: int) -> None:
    """Writes dataset_info.json and features.json, as tfds itself writes them.

    Args:
      split: the one split. lengths: records in each of its shards. size: bytes of their examples.
    """
    import tensorflow_datasets as tfds

    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version(VERSION),
            data_dir=os.fspath(directory),
            module_name="crem_jax.data.tools.prepare",
        ),
        description="Records of retrieval pairs and conversations, as crem_jax reads them.",
        features=layout_features(),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        dataset_name=NAME,
        data_dir=directory,
        split=split,
        filetype_suffix="array_record",
    )
    about = tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    info.set_splits(tfds.core.splits.SplitDict([about]))
    info.write_to_directory(directory)


def encode_record(record: Record) -> bytes:
    """A record whose pictures are all encoded bytes, as a serialised tf.train.Example.

    The same record gives the same bytes in every process: a protobuf map is otherwise written in an
    order that differs from process to process.

    Raises:
      RecordError: a text of it is no valid Unicode.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    items = [record.query, *record.positives, *record.negatives]
    hashes = [item.content_hash() for item in items]
    texts = {
        "id": [record.id],
        "source": [record.source],
        "texts": [item.text for item in items],
        "turns": [part for turn in record.turns for part in turn],
        "metadata": [json.dumps(record.metadata, ensure_ascii=False, sort_keys=True)],
    }
    for name, values in texts.items():
        try:
            feature[name].bytes_list.value.extend(value.encode() for value in values)
        except UnicodeEncodeError as error:
            raise RecordError(f"the {name} of record {record.id!a} is no valid Unicode") from error
    feature["pictures"].bytes_list.value.extend(p for item in items for p in item.images)
    signed = [value - (1 << 64) if value >> 63 else value for value in hashes]
    feature["hashes"].int64_list.value.extend(signed)
    feature["picture_counts"].int64_list.value.extend(len(item.images) for item in items)
    feature["positives"].int64_list.value.append(len(record.positives))
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes, where: str) -> Record:
    """Inverse of `encode_record`; the items know their hashes.

    Raises:
      RecordError: the example is damaged.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        feature = tf_example_pb2.Example.FromString(data).features.feature
        raw = {name: list(feature[name].bytes_list.value) for name in LAYOUT}
        numbers = {name: list(feature[name].int64_list.value) for name in LAYOUT}
        texts = [text.decode() for text in raw["texts"]]
        turns = [part.decode() for part in raw["turns"]]
        (name,), (source,) = raw["id"], raw["source"]
        items, first = [], 0
        for text, count, content in zip(
            texts, numbers["picture_counts"], numbers["hashes"], strict=True
        ):
            images = tuple(raw["pictures"][first : first + count])
            items.append(Item(text, images, content % (1 << 64)))
            first += count
        (positives,) = numbers["positives"]
        (metadata,) = raw["metadata"] or [b"{}"]
        return Record(
            id=name.decode(),
            query=items[0],
            positives=tuple(items[1 : 1 + positives]),
            negatives=tuple(items[1 + positives :]),
            turns=tuple(zip(turns[::2], turns[1::2], strict=True)),
            source=source.decode(),
            metadata=json.loads(metadata),
        )
    except (DecodeError, ValueError, IndexError) as error:
        raise RecordError(f"{where}: is damaged: {error}") from error
