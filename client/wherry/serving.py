"""Deployments: models that are served; what the server takes and answers, and the operations on them."""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from client.wherry import models, protocol, scripts
from client.wherry.effects import Request, Script, Series, Work
from client.wherry.errors import SourceError
from client.wherry.source import ProgressCallback

#: Seconds that a prediction may take: a model that sleeps is woken first.
_PREDICT_TIMEOUT_S = 180.0


class Replica(models.Answer):
    """A replica: a job of its own, with logs and metrics."""

    job_id: str
    revision: int = 0
    node: str = ""
    state: str


class ReplicaFailure(models.Answer):
    """A replica that has failed: a job of its own, and why, with what its program said last."""

    job_id: str
    revision: int = 0
    reason: str = ""
    message: str = ""
    ended_at: datetime | None = None


class Deployment(models.Answer):
    """A deployment and how it is; its id is that of its job. An answer to a request has its status alone."""

    deployment_id: str
    name: str
    status: str
    owner: str = ""
    artifact: str | None = None
    model: str | None = None
    image: str | None = None
    revision: int = 0
    replicas: int = 0
    running: int = 0
    members: tuple[Replica, ...] = ()
    created_at: datetime | None = None
    used_at: datetime | None = None
    ended_at: datetime | None = None
    pending: tuple[models.Pending, ...] = ()
    error: models.Failure | None = None
    remarks: tuple[str, ...] = ()
    last_failure: ReplicaFailure | None = None
    predict_url: str = ""
    inference_url: str = ""


class DeploymentPage(models.Answer):
    """Some deployments; `cursor` asks for the next."""

    deployments: tuple[Deployment, ...] = ()
    cursor: str | None = None


class Predictions(models.Answer):
    """What a model says; times are milliseconds, of all and of the model alone."""

    predictions: tuple[Any, ...] = ()
    deployment_id: str = ""
    latency_ms: float = 0
    model_ms: float = 0


# --- requests --------------------------------------------------------------------------------------------------------


def _path(deployment: str, below: str = "") -> str:
    return f"/deployments/{protocol.segment(deployment)}{below}"


def show(deployment: str, method: str = "GET") -> Request:
    """Ask for a deployment, or (DELETE) that it ends."""
    return Request(method, _path(deployment))


def change(deployment: str, changes: Mapping[str, Any]) -> Request:
    """Ask for a deployment to be otherwise."""
    return Request("PATCH", _path(deployment), json=dict(changes))


# --- operations ------------------------------------------------------------------------------------------------------


def deploy(
    wish: Mapping[str, Any], path: Path | None, key: str, progress: ProgressCallback | None, patience_s: float
) -> Script[Deployment]:
    """Serve a model, which is sent first where *path* (a zip, or a folder) is given.

    Raises:
        SourceError: it cannot be read.

    """
    whole = dict(wish)
    if path is not None:
        whole["artifact"] = (yield from scripts.put_artifact(path, path.name, progress, patience_s, None)).artifact_id
    request = Request("POST", "/deployments", headers={"Idempotency-Key": key}, json=whole)
    return (yield from scripts.ask(Deployment, request, patience_s))


def update(
    deployment: str,
    changes: Mapping[str, Any],
    path: Path | None,
    progress: ProgressCallback | None,
    patience_s: float,
) -> Script[Deployment]:
    """Have a deployment otherwise; with *path*, with another model.

    Raises:
        SourceError: it cannot be read.

    """
    whole = dict(changes)
    if path is not None:
        whole["artifact"] = (yield from scripts.put_artifact(path, path.name, progress, patience_s, None)).artifact_id
    return (yield from scripts.ask(Deployment, change(deployment, whole), patience_s))


def listed(name: str | None, limit: int | None, patience_s: float, *, ended: bool = False) -> Series[Deployment]:
    """Give deployments, newest first."""
    filters = {"name": name, "ended": "true" if ended else None}
    return scripts.each(DeploymentPage, "/deployments", filters, lambda page: page.deployments, limit, patience_s)


def predict(
    deployment: str, order: Mapping[str, Any], images: Sequence[Path | bytes], patience_s: float
) -> Script[Predictions]:
    """Ask a deployment; with *images*, about those.

    Raises:
        SourceError: one cannot be read.

    """
    whole = dict(order)
    if images:
        read = yield Work(partial(_encoded, images))
        whole["instances"] = read
    request = Request("POST", _path(deployment, "/predict"), json=whole, read_timeout_s=_PREDICT_TIMEOUT_S)
    return (yield from scripts.ask(Predictions, request, patience_s))


def _encoded(images: Sequence[Path | bytes]) -> list[dict[str, str]]:
    return [{"b64": base64.b64encode(_bytes(image)).decode()} for image in images]


def _bytes(image: Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise SourceError(f"{image} cannot be read: {error}") from error
