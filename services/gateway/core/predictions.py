"""What a prediction is asked with, and what a serving image is sent for it: the REST form of TensorFlow Serving."""

import base64
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints
from pydantic_core import from_json

from services.gateway.core.deployments import NewDeployment
from services.gateway.core.problems import invalid
from shared.errors import FieldProblem, WherryError
from shared.model import Frozen
from shared.spec import ArtifactId, ImageRef, ModelRef, Resources, Seconds

#: Where a serving image answers; it has one model, whatever it is called.
PATH = "/v1/models/model:predict"
JSON_HEADERS = (("Content-Type", "application/json"), ("Accept", "application/json"))
#: Characters of what a program says of a request that it refuses.
_WORDS_MAX = 2000
_URL = r"^https?://[^\s\x00-\x1f\x7f]+$"


class Size(Frozen):
    """The size that an image is to have before it is looked at. What is not given is the model's own."""

    width: int | None = Field(default=None, ge=1, le=4096)
    height: int | None = Field(default=None, ge=1, le=4096)
    channels: int | None = Field(default=None, ge=1, le=4)


class PredictOrder(Size):
    """What a model is to be asked: with `instances` as they are, or with an image."""

    instances: Annotated[list[Any], Field(min_length=1)] | None = None
    image_url: Annotated[str, StringConstraints(max_length=2048, pattern=_URL)] | None = None
    signature_name: str | None = None  # of TensorFlow Serving; passed on


class QuickPredict(PredictOrder):
    """A model and what it is to be asked, in one go. The model is deployed, and no longer kept once nobody asks."""

    #: A zip with the model: its address, or an artifact of one's own.
    model_url: Annotated[str, StringConstraints(max_length=2048, pattern=_URL)] | None = None
    artifact: ArtifactId | None = None
    #: Or a model of the catalogue: ``name`` (its newest version) or ``name@version``.
    model: ModelRef | None = None
    image: ImageRef | None = None
    resources: Resources | None = None
    #: Seconds without a request after which it is not kept running.
    idle: Seconds = 300


class PredictDocument(BaseModel):
    """What a model says. `latency_ms` is all that it took here, `model_ms` what the replica took of it."""

    predictions: list[Any]
    deployment_id: str
    latency_ms: float
    model_ms: float


def check(order: PredictOrder, *, has_image: bool) -> None:
    """Check that there is one thing to ask with.

    Raises:
        WherryError: ``invalid``.
    """
    if sum((has_image, order.image_url is not None, order.instances is not None)) != 1:
        message = "Give one of this, `image_url` and an uploaded `image`"
        raise invalid([FieldProblem(field="instances", message=message)])


def field_of(problem: FieldProblem) -> FieldProblem:
    """Return what is wrong with the deployment of a `QuickPredict` as what is wrong with that."""
    field = "model_url" if problem.field.startswith("inputs.model") else problem.field
    return FieldProblem(field=field, message=problem.message)


def instances_body(order: PredictOrder) -> bytes:
    """Return what the model is sent for *order* with instances."""
    wanted = {"instances", "signature_name", *Size.model_fields}
    return order.model_dump_json(include=wanted, exclude_none=True).encode()


def image_body(image: bytes, size: Size) -> bytes:
    """Return what the model is sent for the bytes of an image: it decodes and scales it itself."""
    sent: dict[str, Any] = {"instances": [{"b64": base64.b64encode(image).decode()}]}
    return json.dumps(sent | size.model_dump(include=set(Size.model_fields), exclude_none=True)).encode()


def predictions_in(status: int, body: bytes) -> list[Any]:
    """Return the predictions in a model's answer.

    Raises:
        WherryError: ``model_refused`` with the model's words; ``model_failed``: it answers nothing that is understood.
    """
    try:
        said: Any = from_json(body)
    except ValueError:
        said = None
    if 400 <= status < 500:
        words = said.get("error") if isinstance(said, Mapping) else None
        told = str(words)[:_WORDS_MAX] if words else f"it answers {status}"
        raise WherryError("model_refused", f"The model does not take this: {told}")
    if status != 200 or not isinstance(said, Mapping) or not isinstance(said.get("predictions"), list):
        raise WherryError("model_failed", f"The model answers {status}, without predictions.")
    return said["predictions"]


def deployment_of(order: QuickPredict, name: str) -> NewDeployment:
    """Return the deployment that answers *order*."""
    given: dict[str, Any] = {"name": name, "idle": order.idle}
    if order.artifact is not None:
        given["artifact"] = order.artifact
    if order.model_url is not None:
        given["inputs"] = {"model": order.model_url}
    for field in ("model", "image", "resources"):
        if (value := getattr(order, field)) is not None:
            given[field] = value
    return NewDeployment.model_validate(given)
