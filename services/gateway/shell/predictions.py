"""Predictions: an order or a form becomes a request to a deployment, and its answer a document."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

from pydantic import ValidationError

from services.gateway.adapters.form import parts
from services.gateway.adapters.replica import Wish
from services.gateway.core import deployments, predictions, problems
from services.gateway.core.deployments import NewDeployment
from services.gateway.core.predictions import PredictDocument, PredictOrder, QuickPredict, Size
from services.gateway.shell import deployments as shell
from services.gateway.shell import models
from services.gateway.shell.gateway import Gateway
from shared.channels import ARTIFACT_DELETE, WEB_FETCH
from shared.clock import monotonic
from shared.errors import FieldProblem, NotFound, WherryError
from shared.job import Job
from shared.requests.accounts import Principal
from shared.requests.artifacts import ArtifactQuery, WebFetch
from shared.requests.blobs import BlobRead

_FIELD_BYTES_MAX, _DIGITS_MAX = 8192, 9
_IMAGE_BYTES_MAX = 32 * 1024 * 1024
_FETCH_TIMEOUT_S = 30.0
_IMAGE_FIELDS = frozenset({"image", "data", "file"})


async def predict(
    gateway: Gateway, principal: Principal, job: Job, order: PredictOrder, image: bytes | None
) -> PredictDocument:
    """Ask a deployment.

    Args:
        gateway: where.
        principal: who asks.
        job: the deployment.
        order: what is asked.
        image: what was uploaded, in the place of instances and an address.

    Raises:
        WherryError: ``invalid``; ``model_refused``, ``model_failed``; as `deployments.ask`.
    """
    began = monotonic()
    predictions.check(order, has_image=image is not None)
    async with AsyncExitStack() as held:
        if order.image_url is not None:
            image = await _fetched(gateway, principal, order.image_url, job.owner.id, held)
        body = predictions.instances_body(order) if image is None else predictions.image_body(image, order)
        wish = Wish("POST", predictions.PATH, predictions.JSON_HEADERS, body)
        answer = await shell.ask(gateway, principal, job, wish, held)
    found = predictions.predictions_in(answer.status, answer.body)
    return PredictDocument(
        predictions=found,
        deployment_id=job.id,
        latency_ms=round((monotonic() - began) * 1000, 2),
        model_ms=round(answer.took_s * 1000, 2),
    )


async def _fetched(gateway: Gateway, principal: Principal, url: str, served_by: str, held: AsyncExitStack) -> bytes:
    """Return the image at *url*: storage fetches it, from addresses that anybody may call.

    Its room counts as that of the service's owner *served_by*, until *held* ends.

    Raises:
        WherryError: ``invalid``: it cannot be had; ``busy``.
    """
    wish = WebFetch(owner_id=principal.user_id, url=url, bytes_max=_IMAGE_BYTES_MAX)
    try:
        stored = await gateway.bus.ask(WEB_FETCH, wish, timeout_s=_FETCH_TIMEOUT_S)
    except WherryError as error:
        if error.retryable:
            raise
        raise problems.invalid([FieldProblem(field="image_url", message=error.message.removesuffix("."))]) from error
    try:
        await held.enter_async_context(gateway.serve_bodies.taken(served_by, stored.blob.size))
        wanted = BlobRead(sha256=stored.blob.sha256)
        return b"".join([piece async for piece in gateway.blobs.read(wanted, patience_s=_FETCH_TIMEOUT_S)])
    finally:
        if stored.artifact_id is not None:
            with suppress(WherryError):  # it goes by itself when nobody has used it for long
                await gateway.ask(ARTIFACT_DELETE, ArtifactQuery(artifact_id=stored.artifact_id))


async def quick(gateway: Gateway, principal: Principal, order: QuickPredict, image: bytes | None) -> PredictDocument:
    """Ask a model that is deployed for this, or was before.

    Raises:
        WherryError: as `predict` and `deployments.make`.
    """
    if sum(one is not None for one in (order.model_url, order.artifact, order.model)) != 1:
        raise problems.invalid([FieldProblem(field="model_url", message="Give one of this, `artifact` and `model`")])
    predictions.check(order, has_image=image is not None)  # before anything is deployed for it
    order = await _pinned(gateway, order)
    wish = predictions.deployment_of(order, "predict")
    wish = wish.model_copy(update={"name": deployments.name_for(wish)})
    try:
        job = await shell.find(gateway, principal, wish.name)
    except NotFound:
        job = await _made(gateway, principal, wish)
    return await predict(gateway, principal, job, order, image)


async def _pinned(gateway: Gateway, order: QuickPredict) -> QuickPredict:
    """Return the order with the version that is a model's newest now: another one is another deployment."""
    if order.model is None:
        return order
    try:
        model, version = await models.find(gateway, order.model)
    except NotFound as error:
        raise problems.invalid([FieldProblem(field="model", message=error.message.removesuffix("."))]) from None
    return order.model_copy(update={"model": f"{model.name}@{version.version}"})


async def _made(gateway: Gateway, principal: Principal, wish: NewDeployment) -> Job:
    try:
        return await gateway.serving.job(await shell.make(gateway, principal, wish, None))
    except WherryError as error:
        if error.code == "invalid":
            raise problems.invalid([predictions.field_of(one) for one in error.fields]) from None
        if error.code != "name_taken":  # that is: somebody has asked for the same at the same moment
            raise
    return await shell.find(gateway, principal, wish.name)


async def form(
    model: type[PredictOrder], content_type: str, body: AsyncIterator[bytes], bytes_max: int
) -> tuple[Any, bytes | None]:
    """Return what a form with an image and fields beside it asks for, as a *model*, and the image.

    Raises:
        WherryError: ``bad_form``, ``too_large``, ``invalid``.
    """
    fields: dict[str, Any] = {}
    image: bytes | None = None
    async with aclosing(parts(content_type, body)) as found:
        async for part in found:
            if part.name in _IMAGE_FIELDS and part.filename is not None and image is None:
                image = await part.content(bytes_max)
            elif part.name in model.model_fields:
                text = (await part.content(_FIELD_BYTES_MAX)).decode(errors="replace")
                is_number = part.name in Size.model_fields and text.isdecimal() and len(text) <= _DIGITS_MAX
                fields[part.name] = int(text) if is_number else text
            else:
                raise problems.invalid([FieldProblem(field=part.name[:100], message="A form has no such field")])
    try:
        return model.model_validate(fields), image
    except ValidationError as error:
        raise problems.from_validation(error, model) from None
