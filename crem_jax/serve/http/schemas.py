"""The schemas of request bodies. Unknown fields of OpenAI's requests are ignored, and unsupported
ones that would change the answer are refused; other requests may have no unknown fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator, model_validator

from crem_jax.errors import CremError

_INT32, _INT64 = 2**31 - 1, 2**63 - 1

Picture = Annotated[str, Field(description="a data URI, or a URL that the server allows")]
ChorusTokens = Annotated[
    int | None, Field(default=None, ge=1, le=4096, description="read the first k chorus tokens")
]
Temperature = Annotated[float, Field(default=0.0, ge=0, le=100, allow_inf_nan=False)]
TopP = Annotated[float, Field(default=1.0, gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int | None, Field(default=None, ge=-_INT64, le=_INT64)]
Tokens = Annotated[int | None, Field(default=None, ge=1, le=_INT32)]


class FirstError(FailFast):
    """A list is not read on behind its first error."""

    __hash__ = object.__hash__  # within a union types are hashed


class OpenAIRequest(BaseModel):
    """A request of OpenAI's interface; null is as if it were not there."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: one for key, one in value.items() if one is not None}


class StrictRequest(BaseModel):
    """A request of crem's own routes; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_key(cls, value: Any) -> Any:
        """Each would be an error of its own; the first says enough."""
        if not isinstance(value, dict):
            return value
        unknown = [key for key in value if key not in cls.model_fields]
        return {key: value[key] for key in value if key in cls.model_fields or key == unknown[0]}


class TextPart(OpenAIRequest):
    type: Literal["text"]
    text: str


class ImageUrl(OpenAIRequest):
    url: Picture


class ImagePart(OpenAIRequest):
    type: Literal["image_url"]
    image_url: ImageUrl | Picture

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], FirstError()]


class Message(OpenAIRequest):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=256), FirstError()]


class InputItem(StrictRequest):
    """Text, a picture, or both."""

    text: str = ""
    image: Picture | None = None


class EmbeddingsRequest(OpenAIRequest):
    model: str | None = None
    input: str | InputItem | Annotated[list[str | InputItem], FirstError()] | None = None
    messages: Messages | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=_INT32)
    k: ChorusTokens

    @field_validator("input", mode="before")
    @classmethod
    def _is_no_token_ids(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise CremError("token ids are of another tokenizer; expected text")
        return value


class StreamOptions(OpenAIRequest):
    include_usage: bool = False


class ChatRequest(OpenAIRequest):
    model: str | None = None
    messages: Messages
    max_tokens: Tokens
    max_completion_tokens: Tokens
    temperature: Temperature
    top_p: TopP
    seed: Seed
    stream: bool = False
    stream_options: StreamOptions | None = None
    compressed: bool = Field(default=False, description="answer from the chorus alone")
    k: ChorusTokens
    # Not implemented, and refused, as they would change the answer.
    n: Any = None
    stop: Any = None
    tools: Any = None
    functions: Any = None
    logprobs: Any = None
    logit_bias: Any = None
    response_format: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None

    @field_validator("n", mode="after")
    @classmethod
    def _is_one(cls, value: Any) -> Any:
        if value not in (None, 1):
            raise CremError("expected 1: one answer is given")
        return value

    @field_validator(
        *("stop", "tools", "functions", "logprobs", "logit_bias", "response_format"),
        *("presence_penalty", "frequency_penalty"),
        mode="after",
    )
    @classmethod
    def _is_absent(cls, value: Any) -> Any:
        if value and value != {"type": "text"}:
            raise CremError("is not supported")
        return value


class SearchRequest(StrictRequest):
    query: str = ""
    image: Picture | None = None
    top: int = Field(default=10, ge=1)
    k: ChorusTokens
    where: str | None = None
    thumbnails: bool = False


class AskRequest(StrictRequest):
    ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=4096)]],
        Field(min_length=1, max_length=64),
        FirstError(),
    ]
    question: str
    k: ChorusTokens
    max_tokens: Tokens
    temperature: Temperature
    top_p: TopP
    seed: Seed
    stream: bool = False
