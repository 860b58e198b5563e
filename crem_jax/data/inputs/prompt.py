"""Turns items and conversations into rows of tokens and patches.

    context  [system] <|im_start|>user⏎ {pictures} {text} | padding | {chorus}
    target   {question}<|im_end|>⏎<|im_start|>assistant⏎{answer}<|im_end|>⏎<|im_start|>user⏎ …

Together they are the tokens of the chat template, split after the chorus.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from crem_jax.config import ModelConfig
from crem_jax.data.images.patches import fill_grid
from crem_jax.data.images.processor import ImageProcessor, PatchedPicture
from crem_jax.data.inputs.padding import ContextRow, PromptError, TargetRow, text_positions
from crem_jax.data.records import Item, Picture


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """A context whose images are not decoded yet: its size is known and can still be changed.

    Attributes:
      head, text: tokens before and after the pictures.
      pictures: the results of `peek`. sizes: (height, width) in pixels, upright.
      grids: (rows, columns) of vision tokens of each image at the model's own resolution.
      visual: vision tokens in these grids. fixed: number of all other tokens but the chorus.
    """

    head: tuple[int, ...]
    text: tuple[int, ...]
    pictures: tuple[Picture | PatchedPicture, ...]
    sizes: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]
    visual: int
    fixed: int

    def shrunk(self, tokens: int) -> tuple[tuple[int, int], ...]:
        """Grids of at most `tokens` vision tokens in total, all images shrunk by the same factor.

        Raises:
          ValueError: `tokens` is less than one for each image.
        """
        if tokens >= self.visual:
            return self.grids
        if tokens < len(self.grids):
            raise ValueError(f"{len(self.grids)} pictures do not fit {tokens} vision tokens")
        shares = [max(1, rows * columns * tokens // self.visual) for rows, columns in self.grids]
        while sum(shares) > tokens:
            shares[shares.index(max(shares))] -= 1
        fitted = zip(self.sizes, shares, strict=True)
        return tuple(fill_grid(height, width, share) for (height, width), share in fitted)


class Prompter:
    """Builds rows for one model.

    Args:
      config: the model's.
      tokenizer: a transformers tokenizer holding Qwen2-VL's special tokens.
      hard_max: never exceed the model's max_pixels, which Qwen2-VL's own rule does for long strips;
        for batches of static shape.
      fast_jpeg: decode large JPEGs at a fraction of their size, see `open_picture`; pixels then
        differ a little from Hugging Face's.
      fast_resize: resize by SIMD instructions, see `resize`; hardly any pixel differs.
      known_texts: size of the cache of tokenised texts.

    Raises:
      ValueError: `fast_resize` without the package it needs.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer,
        hard_max: bool = False,
        fast_jpeg: bool = False,
        fast_resize: bool = False,
        known_texts: int = 1 << 17,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.images = ImageProcessor(config.vision, hard_max, fast_jpeg, fast_resize)
        self.known_texts = known_texts
        self.user_tokens = functools.lru_cache(known_texts)(self._user_tokens)
        text, system = self.user_tokens, config.system_prompt
        start, end = (
            tokenizer.convert_tokens_to_ids(f"<|im_{word}|>") for word in ("start", "end")
        )
        opening = (start, *text(f"system\n{system}"), end, *text("\n")) if system else ()
        self._head = (*opening, start)
        self._to_answer = (end, *text("\n"), start, *text("assistant\n"))
        self._end = (end,)
        self._to_question = (*text("\n"), start, *text("user\n"))

    def __reduce__(self):  # the cache is not pickled when it moves to a worker process
        images = self.images
        options = images.hard_max, images.fast_jpeg, images.fast_resize, self.known_texts
        return Prompter, (self.config, self.tokenizer, *options)

    def _user_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a user's text; special tokens spelt out in it are tokenised as plain text.

        Raises:
          PromptError: the tokenizer has no tokens for it.
        """
        try:
            # Always the same switch: it is state of the tokenizer that other threads would see.
            encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        except Exception as error:  # the tokenizers library raises bare Exception too
            raise PromptError(
                f"a text cannot be tokenised; expected valid Unicode: it begins {text[:40]!a}"
            ) from error
        return tuple(encoded["input_ids"])

    def context(self, item: Item | None) -> ContextRow:
        """Tokens, M-RoPE positions (Qwen2-VL section 2.1) and patches of one item.

        None is the bare opening of a conversation, before a question without pictures.
        """
        return self.finish(self.draft(item))

    def draft(self, item: Item | None) -> Draft:
        """The context of one item, its pictures known by their size alone.

        Raises:
          PictureError: a picture that cannot be opened.
        """
        text, images = ("", ()) if item is None else (item.text, item.images)
        # One piece with what precedes it, as a tokenizer may join line breaks.
        opening = self.user_tokens("user\n" if images else f"user\n{text}")
        peeked = [self.images.peek(image) for image in images]
        sizes = tuple(size for _, size in peeked)
        grids = tuple(self.images.grid(*size) for size in sizes)
        head = (*self._head, *opening)
        words = self.user_tokens(text) if images else ()
        return Draft(
            head=head,
            text=words,
            pictures=tuple(picture for picture, _ in peeked),
            sizes=sizes,
            grids=grids,
            visual=sum(rows * columns for rows, columns in grids),
            fixed=len(head) + 2 * len(grids) + len(words),
        )

    def check(self, item: Item | None) -> Draft:
        """The draft of an item that fits the model at full size.

        Raises:
          PictureError: a picture that cannot be opened. PromptError: it does not fit.
        """
        draft = self.draft(item)
        self._check_length(draft, draft.grids)
        return draft

    def _check_length(self, draft: Draft, grids: Sequence[tuple[int, int]]) -> None:
        needed = draft.fixed + sum(map(max, grids)) + self.config.num_chorus
        if needed > self.config.text.max_positions:
            raise PromptError(
                f"the prompt needs {needed} positions, chorus included, more than the model's "
                f"{self.config.text.max_positions} positions; its text begins "
                f"{self._beginning(draft)!r}"
            )

    def finish(self, draft: Draft, visual: int | None = None) -> ContextRow:
        """The row of a draft, its pictures decoded.

        Args:
          visual: the vision tokens there is room for; pictures are made smaller where need be.

        Raises:
          PictureError: a picture that cannot be decoded. PromptError: it does not fit the model.
        """
        cfg = self.config
        tokens, positions = [*draft.head], []
        pixels, patch_positions, pictures = [], [], []
        start = len(tokens)
        positions.append(text_positions(0, start))
        grids = draft.grids if visual is None else draft.shrunk(visual)
        self._check_length(draft, grids)
        for number, (image, grid) in enumerate(zip(draft.pictures, grids, strict=True), start=1):
            patches, patch_position = self.images.patches(image, grid)
            pixels.append(patches)
            patch_positions.append(patch_position)
            pictures.append(np.full(len(patches), number, np.int32))
            rows, columns = grid
            tokens.append(cfg.vision_start_token_id)
            tokens.extend([cfg.image_token_id] * (rows * columns))
            tokens.append(cfg.vision_end_token_id)
            positions.append(text_positions(start, 1))
            places = np.indices((1, rows, columns)).reshape(3, -1).T
            positions.append((places + start + 1).astype(np.int32))
            start += 1 + max(rows, columns)
            positions.append(text_positions(start, 1))
            start += 1
        tokens.extend(draft.text)
        positions.append(text_positions(start, len(draft.text)))
        values = cfg.vision.patch_values
        return ContextRow(
            tokens=np.asarray(tokens, np.int32),
            position=np.concatenate(positions),
            pixels=_stack(pixels, (0, values), np.uint8),
            patch_position=_stack(patch_positions, (0, 2), np.int32),
            picture=_stack(pictures, (0,), np.int32),
        )

    def patches(self, image: Picture) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [p, values] patches of a picture and their int32 [p, 2] places."""
        picture, size = self.images.peek(image)
        return self.images.patches(picture, self.images.grid(*size))

    def _beginning(self, draft: Draft) -> str:
        text = draft.text or draft.head[len(self._head) :]
        return self.tokenizer.decode(text[:60]).removeprefix("user\n")[:40]

    def target(self, turns: Sequence[tuple[str, str]]) -> TargetRow:
        """A conversation; the label is on every answer and the <|im_end|> that closes it."""
        tokens: list[int] = []
        label: list[int] = []
        for number, (question, answer) in enumerate(turns):
            question_tokens = (*self.user_tokens(question), *self._to_answer)
            if number:
                question_tokens = (*self._to_question, *question_tokens)
            answered = (*self.user_tokens(answer), *self._end)
            tokens += [*question_tokens, *answered]
            label += [-1] * (len(question_tokens) - 1) + [*answered, -1]
        return TargetRow(np.asarray(tokens, np.int32), np.asarray(label, np.int32))

    def question(self, text: str, turns: Sequence[tuple[str, str]] = ()) -> np.ndarray:
        """Target tokens up to where the answer begins, int32 [n].

        Args:
          turns: (question, answer) pairs that came before in the same conversation.

        Raises:
          PromptError: the question is empty.
        """
        if not text.strip():
            raise PromptError("the question is empty; expected some text")
        before = (*self.target(turns).tokens, *self._to_question) if turns else ()
        return np.asarray([*before, *self.user_tokens(text), *self._to_answer], np.int32)

    def question_about(
        self, item: Item, turns: Sequence[tuple[str, str]] = ()
    ) -> tuple[ContextRow, np.ndarray]:
        """An item as a model answers it: the context of its pictures, and its text as `question`.

        Raises:
          PictureError, PromptError: a picture or the question is unusable, or together they do not
            fit the model.
        """
        question = self.question(item.text, turns)
        row = self.context(Item(images=item.images) if item.images else None)
        needed, limit = len(row.tokens) + len(question), self.config.text.max_positions
        if needed + self.config.num_chorus > limit:
            raise PromptError(
                f"the question needs {needed} tokens with its pictures; the model has {limit} "
                f"positions. It begins {item.text[:40]!r}"
            )
        return row, question


def _stack(parts: list[np.ndarray], empty: tuple[int, ...], dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty, dtype)
