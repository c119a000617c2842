"""Models of the catalogue: who may release and change them, and what a job that names one runs."""

from contextlib import aclosing

from services.gateway.core import access, problems, trainings
from services.gateway.core import models as m
from services.gateway.core import params as p
from services.gateway.core.access import Action
from services.gateway.core.inputs import parse_ref
from services.gateway.shell import files
from services.gateway.shell.gateway import Gateway
from services.gateway.shell.inputs import dataset_of
from shared.catalogue import (
    SCHEMA_BYTES_MAX,
    Evaluation,
    EvaluationPut,
    FineTune,
    FineTuneDecline,
    FineTunePut,
    Lineage,
    Model,
    ModelPut,
    ModelQuery,
    ModelRemove,
    ModelStored,
    ModelUpdate,
    ModelVersion,
    Quality,
)
from shared.channels import (
    FINE_TUNE_ASK,
    FINE_TUNE_DECLINE,
    JOB_METRICS,
    MODEL_DELETE,
    MODEL_EVALUATE,
    MODEL_GET,
    MODEL_PUT,
    MODEL_UPDATE,
)
from shared.errors import FieldProblem, NotFound, WherryError
from shared.ids import new_id
from shared.job import Job
from shared.requests.accounts import Principal
from shared.requests.jobs import MetricQuery
from shared.spec import JobSpec
from shared.states import JobState

#: Reading an image's description asks its registry a few questions.
_RELEASE_TIMEOUT_S = 60.0


async def find(gateway: Gateway, ref: str) -> tuple[Model, ModelVersion]:
    """Return a model with all its versions, and the one that ``name[@version]`` names.

    Raises:
        NotFound: there is none.
    """
    name, number = parse_ref(ref)
    model = await _model(gateway, ModelQuery(name=name))
    for version in model.versions:
        if number in (None, version.version):
            return model, version
    older = await _model(gateway, ModelQuery(name=name, version=number))
    return model, older.versions[0]


async def release(gateway: Gateway, principal: Principal, wish: m.NewModel) -> ModelStored:
    """Make a model, or its next version.

    Raises:
        WherryError: ``forbidden``, ``invalid``, ``name_taken``, ``not_found``, ``not_ended``, ``registry_failed``,
            ``registry_refused``, ``unavailable``, ``too_many_versions``, ``conflict``.
    """
    access.require(principal, Action.MANAGE_MODELS)
    given = [field for field in ("artifact_id", "job_id") if getattr(wish, field) is not None]
    if len(given) > 1 or not (given or wish.image):
        raise problems.invalid([FieldProblem(field="image", message="Give this, or `artifact_id`, or `job_id`")])
    if wish.params is not None:
        _check_schema(wish)
    artifact_id, lineage = wish.artifact_id, None
    if artifact_id is not None:
        await gateway.artifact(principal, artifact_id)
    if wish.job_id is not None:
        job = (await gateway.job(principal, wish.job_id)).job
        lineage = await _lineage(gateway, job)
        artifact_id = await _outputs_as_artifact(gateway, principal, job)
    put = ModelPut(
        name=wish.name, owner_id=principal.user_id, owner_name=principal.name,
        anybodys=access.may(principal, Action.CHANGE_ANYTHING), reference=wish.image, read=wish.read,
        artifact_id=artifact_id, description=wish.description, params=wish.params,
        experts=None if wish.experts is None else tuple(wish.experts), quality=_quality(wish.quality),
        lineage=lineage, answers=wish.answers,
    )  # fmt: skip
    return await gateway.bus.ask(MODEL_PUT, put, timeout_s=_RELEASE_TIMEOUT_S)


async def update(gateway: Gateway, principal: Principal, name: str, changes: m.ModelChanges) -> Model:
    """Change how a model is described, who its experts are, and how good it should be.

    Raises:
        WherryError: ``forbidden``, ``not_found``.
    """
    await _own(gateway, principal, name)
    is_gone = "quality" in changes.model_fields_set and changes.quality is None
    wish = ModelUpdate(
        name=name, description=changes.description, quality=_quality(changes.quality), no_quality=is_gone,
        experts=None if changes.experts is None else tuple(changes.experts),
    )  # fmt: skip
    return await gateway.ask(MODEL_UPDATE, wish)


async def remove(gateway: Gateway, principal: Principal, ref: str) -> None:
    """Remove a model or a version of it.

    Raises:
        WherryError: ``forbidden``, ``not_found``, ``conflict``.
    """
    name, version = parse_ref(ref)
    await _own(gateway, principal, name)
    await gateway.ask(MODEL_DELETE, ModelRemove(name=name, version=version))


async def evaluate(gateway: Gateway, principal: Principal, name: str, wish: m.NewEvaluation) -> Evaluation:
    """Keep what a version was measured to be worth.

    Raises:
        WherryError: ``forbidden``, ``not_found``, ``invalid``.
    """
    access.require(principal, Action.MANAGE_MODELS)
    if wish.job_id is not None:
        await gateway.job(principal, wish.job_id)
    put = EvaluationPut(
        id=new_id("v"), model=name, version=wish.version, metrics=wish.metrics, job_id=wish.job_id, note=wish.note,
        dataset=await _dataset(gateway, principal, wish.dataset), by=principal.name,
    )  # fmt: skip
    return await gateway.ask(MODEL_EVALUATE, put)


async def ask_experts(gateway: Gateway, principal: Principal, name: str, wish: m.NewFineTune) -> FineTune:
    """Ask a model's experts to make it better, and tell them.

    Raises:
        WherryError: ``forbidden``, ``not_found``, ``invalid``.
    """
    access.require(principal, Action.MANAGE_MODELS)
    if wish.artifact_id is not None:
        await gateway.artifact(principal, wish.artifact_id)
    put = FineTunePut(
        id=new_id("q"), model=name, version=wish.version, message=wish.message, artifact_id=wish.artifact_id,
        dataset=await _dataset(gateway, principal, wish.dataset), by_id=principal.user_id, by=principal.name,
    )  # fmt: skip
    return await gateway.ask(FINE_TUNE_ASK, put)


async def decline(gateway: Gateway, principal: Principal, name: str, request_id: str, why: str) -> FineTune:
    """Close a request without a version.

    Raises:
        WherryError: ``forbidden``, ``not_found``, ``conflict``.
    """
    await _own(gateway, principal, name)
    wish = FineTuneDecline(id=request_id, model=name, why=why, by=principal.name)
    return await gateway.ask(FINE_TUNE_DECLINE, wish)


async def resolved(gateway: Gateway, spec: JobSpec) -> JobSpec:
    """Return a spec as sent with the image of the model that it names, its parameters checked and filled.

    Raises:
        WherryError: ``invalid``: there is no such model, or the parameters do not fit; ``unavailable``.
    """
    named = m.named(spec)
    if named is None:
        return spec
    name, version = named
    try:
        model = await _model(gateway, ModelQuery(name=name, version=version, alone=True))
    except NotFound as error:
        message = f"{error.message} `wherry models list` shows what there is"
        raise problems.invalid([FieldProblem(field="model", message=message)]) from None
    return m.resolved(spec, model, model.versions[0])


async def _own(gateway: Gateway, principal: Principal, name: str) -> None:
    access.require(principal, Action.MANAGE_MODELS)
    model = await _model(gateway, ModelQuery(name=name, alone=True))
    is_expert = principal.name in model.experts
    if not is_expert and not access.may(principal, Action.CHANGE, model.owner_id):
        who = "only they, its experts and administrators may"
        raise WherryError("forbidden", f"Model {name!r} is {model.owner_name}'s: {who}.")


async def _model(gateway: Gateway, query: ModelQuery) -> Model:
    return await gateway.ask(MODEL_GET, query)


async def _dataset(gateway: Gateway, principal: Principal, ref: str | None) -> str | None:
    """Return a dataset as name@version, pinned to what is its newest version now."""
    if ref is None:
        return None
    name, number = parse_ref(ref)
    found = await dataset_of(gateway, principal, name, number, alone=True)
    if found is None:
        message = f"There is no dataset {ref!r}, or it is not yours: `wherry datasets list` shows what there is"
        raise problems.invalid([FieldProblem(field="dataset", message=message)])
    return f"{name}@{found.versions[0].version}"


async def _lineage(gateway: Gateway, job: Job) -> Lineage:
    """Return what a model that a job left was made of.

    Raises:
        WherryError: ``not_ended``: it has left nothing (yet).
    """
    if job.state is not JobState.SUCCEEDED or job.outputs is None:
        message = f"Job {job.id} is {job.state.value}: only what one has left with success is a model."
        raise WherryError("not_ended", message)
    measured = await gateway.ask(JOB_METRICS, MetricQuery(job_id=trainings.leading(job) or job.id))
    metrics = {one.name: one.last for one in measured.series if not one.name.startswith("system.")}
    pinned = next((attempt.image_digest for attempt in reversed(job.attempts) if attempt.image_digest), None)
    return Lineage(
        job_id=job.id, source=job.spec.source, inputs={name: one.source for name, one in job.spec.inputs.items()},
        params=job.spec.params, image=pinned or job.spec.image or "", metrics=metrics,
    )  # fmt: skip


async def _outputs_as_artifact(gateway: Gateway, principal: Principal, job: Job) -> str:
    """Store all outputs of a job as one zip, and return that artifact. The same outputs are the same bytes."""
    archive, _ = files.zip_of(gateway, job, await files.listing(gateway, job))
    async with aclosing(archive):
        name = f"{job.spec.name[:100]}-{job.id}.zip"
        stored = await files.store(gateway, principal, archive, name, "application/zip")
    if stored.artifact_id is None:
        raise WherryError("internal", "Storage kept an upload without an artifact.")
    return stored.artifact_id


def _check_schema(wish: m.NewModel) -> None:
    schema = wish.params or {}
    fault = p.schema_fault(schema)
    if fault is None and len(str(schema)) > SCHEMA_BYTES_MAX:
        fault = f"it has more than {SCHEMA_BYTES_MAX} bytes"
    if fault is not None:
        raise problems.invalid([FieldProblem(field="params", message=f"This is no JSON Schema: {fault}"[:500])])


def _quality(form: m.QualityForm | None) -> Quality | None:
    return None if form is None else Quality.model_validate(form.model_dump())
