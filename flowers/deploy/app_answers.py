"""What the inference server answers, as JSON: the types, which also describe it in /openapi.json."""

import json
from typing import Any

from fastapi import Response
from pydantic import BaseModel


class FileAnswer(BaseModel):
    """The answer to one file; without values if it cannot be read, and `error` says why."""

    name: str | None
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    strangeness: float | None = None
    rejected: bool | None = None
    abstains: bool | None = None
    error: str | None = None


class Answers(BaseModel):
    """The answers to the files of a request, in their order."""

    predictions: list[FileAnswer]


class Preprocessing(BaseModel):
    """How images are prepared for the network."""

    image_size: int
    resize: int
    interpolation: str
    mean: list[float]
    std: list[float]
    bit_depth: int | str | None


class Digests(BaseModel):
    """SHA-256 of the weights and of the split that the model was trained on."""

    weights: str
    split: str | None


class Limits(BaseModel):
    """Of a request."""

    files: int
    request_bytes: int
    pixels: int


class ModelFacts(BaseModel):
    """What is served."""

    name: str
    version: str
    classes: list[str]
    preprocessing: Preprocessing
    tta: str
    digests: Digests
    rejects: bool
    confidence: float | None
    explains: bool
    limits: Limits


class Health(BaseModel):
    """The server answers."""

    status: str


class RequestError(BaseModel):
    """Why a request was not answered, in one line."""

    error: str


class JSON(Response):
    """JSON in ASCII: a class name may hold bytes that are not UTF-8."""

    media_type = "application/json"

    def render(self, content: BaseModel | dict[str, Any]) -> bytes:
        """Return the body."""
        plain = content.model_dump() if isinstance(content, BaseModel) else content
        return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode("ascii")
