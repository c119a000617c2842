"""Datasets: who may see and change them, and bytes that come in with them."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from services.gateway.adapters.form import parts
from services.gateway.core import access, problems, views_datasets
from services.gateway.core.access import Action
from services.gateway.core.inputs import parse_ref
from services.gateway.core.names import BINARY, file_name
from services.gateway.shell import files
from services.gateway.shell.gateway import Gateway
from services.gateway.shell.inputs import dataset_of
from shared.channels import DATASET_DELETE, DATASET_GET, DATASET_PUT, DATASET_UPDATE
from shared.errors import FieldProblem, NotFound, WherryError
from shared.requests.accounts import Principal
from shared.requests.datasets import (
    Dataset,
    DatasetPut,
    DatasetQuery,
    DatasetRemove,
    DatasetStored,
    DatasetUpdate,
    DatasetVersion,
)

#: The most bytes that a field of a form beside its file may have.
FIELD_BYTES_MAX = 64 * 1024
_WHAT = "such dataset"


async def find(gateway: Gateway, principal: Principal, ref: str) -> tuple[Dataset, DatasetVersion]:
    """Return a dataset, and the version that ``name[@version]`` names.

    Raises:
        NotFound: there is none, or it is not for the caller.
    """
    name, number = parse_ref(ref)
    found = await dataset_of(gateway, principal, name)
    if found is not None:
        for version in found.versions:
            if number in (None, version.version):
                return found, version
    raise access.missing(_WHAT)


async def put(gateway: Gateway, principal: Principal, wish: views_datasets.NewDataset) -> DatasetStored:
    """Make a version of what is stored already: an artifact, or a file that a job left.

    Raises:
        WherryError: ``invalid``, ``not_found``, ``not_ended``, ``name_taken``, ``too_many_versions``.
    """
    if (wish.artifact_id is None) == (wish.output is None):
        raise problems.invalid([FieldProblem(field="artifact_id", message="Give this, or `output`, or send a form")])
    if wish.artifact_id is not None:
        await gateway.artifact(principal, wish.artifact_id)
        return await _put(gateway, principal, wish, artifact_id=wish.artifact_id)
    job_id, _, path = (wish.output or "").removeprefix("job:").partition("/")
    job = (await gateway.job(principal, job_id)).job
    await files.one(gateway, job, path)
    return await _put(gateway, principal, wish, job_id=job_id, path=path)


async def put_form(
    gateway: Gateway, principal: Principal, content_type: str, body: AsyncIterator[bytes]
) -> DatasetStored:
    """Make a version of the file that a form brings, while it is read.

    Raises:
        WherryError: ``bad_form``, ``invalid``, ``name_taken``, ``too_many_versions``.
    """
    fields: dict[str, Any] = {}
    artifact_id: str | None = None
    async with aclosing(parts(content_type, body)) as found:
        async for part in found:
            if part.name == "file" and artifact_id is None:
                if "name" in fields:  # before gigabytes of it have come for nothing
                    await _check_name(gateway, principal, _wish(fields))
                name = file_name(part.filename or "")
                stored = await files.store(gateway, principal, part.chunks(), name, _media_type(name))
                artifact_id = stored.artifact_id
            elif part.name in views_datasets.NewDataset.model_fields and part.name not in (
                "file",
                "artifact_id",
                "output",
            ):
                text = (await part.content(FIELD_BYTES_MAX)).decode(errors="replace")
                labels = [label.strip() for label in text.split(",") if label.strip()]
                fields[part.name] = labels if part.name == "labels" else text
            else:
                raise problems.invalid([FieldProblem(field=part.name[:100], message="A form has no such field")])
    wish = _wish(fields)
    if artifact_id is None:
        raise problems.invalid([FieldProblem(field="file", message="This part of the form is missing")])
    return await _put(gateway, principal, wish, artifact_id=artifact_id)


async def update(gateway: Gateway, principal: Principal, name: str, changes: views_datasets.DatasetChanges) -> Dataset:
    """Change how a dataset is described and who sees it.

    Raises:
        NotFound: there is none, or it is not the caller's.
    """
    await _own(gateway, principal, name)
    labels = None if changes.labels is None else tuple(changes.labels)
    wish = DatasetUpdate(name=name, description=changes.description, labels=labels, visibility=changes.visibility)
    return await gateway.ask(DATASET_UPDATE, wish)


async def remove(gateway: Gateway, principal: Principal, ref: str) -> None:
    """Remove a dataset or a version of it.

    Raises:
        WherryError: ``not_found``; ``dataset_in_use``: jobs that have not ended need it.
    """
    name, version = parse_ref(ref)
    await _own(gateway, principal, name)
    await gateway.ask(DATASET_DELETE, DatasetRemove(name=name, version=version))


async def _own(gateway: Gateway, principal: Principal, name: str) -> None:
    """Let changes to a dataset pass.

    Raises:
        WherryError: ``not_found``; ``forbidden``: it is somebody else's, who shares it.
    """
    found = await dataset_of(gateway, principal, name, alone=True)
    if found is None:
        raise access.missing(_WHAT)
    if not access.may(principal, Action.CHANGE, found.owner_id):
        raise WherryError("forbidden", f"Dataset {name!r} is {found.owner_name}'s: only they and administrators may.")


async def _check_name(gateway: Gateway, principal: Principal, wish: views_datasets.NewDataset) -> None:
    try:
        found = await gateway.ask(DATASET_GET, DatasetQuery(name=wish.name, alone=True))
    except NotFound:
        return
    if not access.may(principal, Action.CHANGE, found.owner_id):
        raise WherryError("name_taken", f"There is a dataset {wish.name!r} already, and it is not yours.")


async def _put(gateway: Gateway, principal: Principal, wish: views_datasets.NewDataset, **what: str) -> DatasetStored:
    question = DatasetPut(
        name=wish.name,
        owner_id=principal.user_id,
        owner_name=principal.name,
        description=wish.description,
        labels=None if wish.labels is None else tuple(wish.labels),
        visibility=wish.visibility,
        anybodys=access.may(principal, Action.CHANGE_ANYTHING),
        **what,
    )
    return await gateway.ask(DATASET_PUT, question)


def _wish(fields: dict[str, Any]) -> views_datasets.NewDataset:
    try:
        return views_datasets.NewDataset.model_validate(fields)
    except ValidationError as error:
        raise problems.from_validation(error, views_datasets.NewDataset) from None


def _media_type(name: str) -> str:
    return "application/zip" if name.lower().endswith(".zip") else BINARY
