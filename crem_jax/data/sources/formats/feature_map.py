"""What of a record is in which feature of a tensorflow-datasets data set."""

from __future__ import annotations

import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from crem_jax.data.records import EmptySideError, Item, Record, RecordError
from crem_jax.data.sources.formats.fields import make_item
from crem_jax.errors import CremError

FEATURE_MAPS: Mapping[str, Mapping[str, str]] = {
    "coco_captions": {
        "id": "{image/filename}",
        "query_image": "image",
        "positive_text": "{captions/text}",
        "question": "Describe the picture.",
        "answer": "{captions/text}",
    },
}
"""Feature maps by name: give `features="coco_captions"`."""

TEXTS = ("id", "query_text", "positive_text", "negative_text", "question", "answer")
IMAGES = ("query_image", "positive_image", "negative_image")


class FeatureMap:
    """Makes records of serialised examples.

    IMAGES name a feature. TEXTS are texts in which {FEATURE} stands for the value of one; the
    number of a ClassLabel becomes its name. A feature within another is written {captions/text}.
    One with many values gives many positives, negatives or turns; a question that is the same for
    all is asked once, and the first answer given.

    Args:
      features: the map, or the name of one in FEATURE_MAPS.
      available: the tfds FeaturesDict.
      name: of the data set.

    Raises:
      CremError: an unknown key or feature.
    """

    def __init__(self, features: str | Mapping[str, str], available: Any, name: str):
        self.map, self._features, self._name = _checked(features), available, name
        tops = set()
        for key, value in self.map.items():
            for feature in [value] if key in IMAGES else _fields(value):
                self._feature(feature)  # raises if there is none
                tops.add(self._top(feature))
        self._tops = sorted(tops)

    def record(self, data: bytes, where: str) -> Record:
        """The record of a serialised tf.train.Example.

        Raises:
          RecordError: the example is damaged, or its features do not make a record.
        """
        try:
            example = self._reader.deserialize_example_np(data, decoders=self._decoders)
        except Exception as error:  # those of tfds have no type of their own
            raise RecordError(f"{where}: is damaged: {error}") from error
        texts = {key: self._texts(key, example, where) for key in TEXTS if key in self.map}
        questions, answers = texts.get("question", [""]), texts.get("answer", [])
        if len(questions) == 1:
            answers = [text for text in answers if text][:1]
        if len(questions) != len(answers) and answers:
            raise RecordError(f"{where} has {len(questions)} questions and {len(answers)} answers")
        turns = tuple(pair for pair in zip(questions, answers, strict=False) if pair[1])
        texts = {key: [text for text in values if text] for key, values in texts.items()}
        images = {key: self._images(key, example, where) for key in IMAGES if key in self.map}

        def items(side: str) -> tuple[Item, ...]:
            written, shown = texts.get(f"{side}_text", []), images.get(f"{side}_image", [])
            count = max(len(written), len(shown))
            if len(shown) == 1:  # several texts for the one picture
                shown = shown * count
            if written and shown and len(written) != len(shown):
                raise RecordError(
                    f"{where} {side} has {len(written)} texts and {len(shown)} pictures"
                )
            return tuple(
                make_item(
                    written[i] if written else "",
                    (shown[i],) if shown else (),
                    f"{where} {side}",
                )
                for i in range(count)
            )

        query, positives = items("query"), items("positive")
        if len(query) != 1:
            raise RecordError(f"{where} has {len(query)} queries; expected one")
        if not positives and not turns:
            raise EmptySideError(f"{where} has nothing to learn: neither positives nor an answer")
        return Record(
            id=texts["id"][0] if texts.get("id") else where,
            query=query[0],
            positives=positives,
            negatives=items("negative"),
            turns=turns,
            source=self._name,
        )

    @functools.cached_property
    def _reader(self) -> Any:
        """The features that are needed, and no others."""
        import tensorflow_datasets as tfds

        return tfds.features.FeaturesDict({top: self._features[top] for top in self._tops})

    @functools.cached_property
    def _decoders(self) -> dict[str, Any]:
        import tensorflow_datasets as tfds

        images = (top for top in self._tops if isinstance(self._reader[top], tfds.features.Image))
        return {top: tfds.decode.SkipDecoding() for top in images}

    def _texts(self, key: str, example: Mapping[str, Any], where: str) -> list[str]:
        template = self.map[key]
        columns = {name: self._values(example, name, where) for name in _fields(template)}
        counts = {len(column) for column in columns.values() if len(column) != 1}
        if len(counts) > 1:
            raise RecordError(f"{where}: the features of {template!r} differ in their numbers")
        texts = []
        for i in range(next(iter(counts), 1)):
            values = {name: col[i if len(col) > 1 else 0] for name, col in columns.items()}
            texts.append(string.Formatter().vformat(template, (), values).strip())
        return texts

    def _values(self, example: Mapping[str, Any], name: str, where: str) -> list[str]:
        """The values of a feature as texts, labels by name."""
        feature, texts = self._feature(name), []
        for value in _flat(self._lookup(example, name)):
            if isinstance(value, bytes):
                try:
                    texts.append(value.decode())
                except UnicodeDecodeError as error:
                    raise RecordError(f"{where} {name}: {error}") from error
            elif hasattr(feature, "int2str") and 0 <= int(value) < feature.num_classes:
                texts.append(feature.int2str(int(value)))
            else:
                texts.append(str(value))
        return texts

    def _images(self, key: str, example: Mapping[str, Any], where: str) -> list[bytes]:
        values = _flat(self._lookup(example, self.map[key]))
        if not all(isinstance(value, bytes) for value in values):
            raise RecordError(f"{where} {self.map[key]}: is no encoded picture")
        return list(values)

    def _top(self, name: str) -> str:
        """The top-level feature that `name` is or is in; tfds has some like "image/filename"."""
        parts = name.split("/")
        for length in range(len(parts), 0, -1):
            if "/".join(parts[:length]) in self._features:
                return "/".join(parts[:length])
        raise CremError(
            f"there is no feature {name!r}; there are {', '.join(sorted(self._features))}"
        )

    def _inner(self, name: str) -> list[str]:
        top = self._top(name)
        return name[len(top) + 1 :].split("/") if name != top else []

    def _feature(self, name: str) -> Any:
        feature = self._features[self._top(name)]
        for part in self._inner(name):
            feature = getattr(feature, "feature", feature)
            if not hasattr(feature, "keys") or part not in feature:
                raise CremError(f"there is no feature {name!r}")
            feature = feature[part]
        return getattr(feature, "feature", feature)

    def _lookup(self, example: Mapping[str, Any], name: str) -> Any:
        value = example[self._top(name)]
        for part in self._inner(name):
            value = value[part]
        return value


def _checked(features: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(features, str):
        if features not in FEATURE_MAPS:
            raise CremError(
                f"features {features!r} is not one of {', '.join(sorted(FEATURE_MAPS))}, nor a map"
            )
        features = FEATURE_MAPS[features]
    known = (*TEXTS, *IMAGES)
    unknown = sorted(set(features) - set(known))
    if unknown:
        raise CremError(f"features.{unknown[0]} is unknown; known: {', '.join(known)}")
    wrong = [key for key, value in features.items() if not isinstance(value, str)]
    if wrong:
        raise CremError(f"features.{wrong[0]} is {features[wrong[0]]!r}; expected a text")
    if not {"query_text", "query_image"} & set(features):
        raise CremError("features has neither 'query_text' nor 'query_image'")
    return dict(features)


def _fields(template: str) -> list[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise CremError(f"features: {template!r}: {error}") from error
    if any(not name or set(name) & set("[.!:") for name in names):
        raise CremError(f"features: {template!r} has braces without the name of a feature")
    return list(dict.fromkeys(names))


def _flat(value: Any) -> Sequence[Any]:
    """The values of a feature in one list, however deep."""
    if isinstance(value, list | tuple) or getattr(value, "ndim", None):
        return [one for part in value for one in _flat(part)]
    return [value]
