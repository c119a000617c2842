"""Taking trainings in, and what a training's document has beside its job."""

import asyncio
from collections.abc import AsyncIterator, Callable

from pydantic import ValidationError

from services.gateway.adapters.training_zip import RUNNER, zip_of
from services.gateway.core import access, problems, trainings
from services.gateway.core.access import Action
from services.gateway.programs.train import MARK
from services.gateway.shell import files, submission
from services.gateway.shell.gateway import Gateway
from services.gateway.shell.inputs import Inputs
from shared.channels import JOB_GET, JOB_LIST, JOB_METRICS
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.requests.accounts import Principal
from shared.requests.artifacts import Artifact
from shared.requests.jobs import JobListQuery, JobQuery, JobView, MetricQuery
from shared.spec import JobSpec
from shared.states import JobState

#: What is run; lines come as they are printed.
COMMAND = ("python3", "-u", RUNNER)
_WHAT = "such training"
_STDERR = "_stderr.txt"
_TAIL_BYTES = 16 * 1024
#: What is parsed may take a hundred times its size in memory.
_one_at_a_time = asyncio.Semaphore(1)


async def submit(gateway: Gateway, principal: Principal, body: bytes, key: str | None) -> str:
    """Record the job of the training that *body* asks for, and return its id.

    Raises:
        WherryError: ``invalid_json``, ``invalid`` with the fields and lines at fault; as `submission.submit`.
    """
    try:
        wish = trainings.NewTraining.model_validate_json(body)
    except ValidationError as error:
        raise problems.from_validation(error, trainings.NewTraining) from None
    async with _one_at_a_time:
        await asyncio.to_thread(trainings.check_modules, wish.modules())
    try:
        return await _submit(gateway, principal, wish, len(body), key)
    except WherryError as error:
        if error.code != "invalid":
            raise
        raise problems.invalid([trainings.field_of(one) for one in error.fields]) from None


async def _submit(
    gateway: Gateway, principal: Principal, wish: trainings.NewTraining, size: int, key: str | None
) -> str:
    try:
        spec = trainings.spec_of(wish, gateway.settings.training_image, COMMAND)
    except ValidationError as error:
        raise problems.from_validation(error, JobSpec) from None
    inputs = Inputs(gateway, principal)
    await submission.check(gateway, principal, spec, size, inputs=inputs)
    source = await _stored(gateway, principal, zip_of(wish.modules()))
    return await submission.submit(gateway, principal, spec, size, key, source, inputs)


async def find(gateway: Gateway, principal: Principal, training_id: str, action: Action = Action.SEE) -> JobView:
    """Return a training's job.

    Raises:
        NotFound: there is none, it is not the caller's, or the job is no training.
    """
    try:
        view = await gateway.job(principal, training_id, action)
    except NotFound:
        raise access.missing(_WHAT) from None
    if view.job.spec.view != "training" or view.job.member_of is not None:
        raise access.missing(_WHAT)
    return view


async def document(gateway: Gateway, view: JobView, link: Callable[[str], str]) -> trainings.TrainingDocument:
    """Return a training with its progress, its last metrics, and why its program failed."""
    shown = trainings.document(view, link, await _first(gateway, view))
    if (first := trainings.leading(view.job)) is not None and view.job.state is not JobState.QUEUED:
        page = await gateway.ask(JOB_METRICS, MetricQuery(job_id=first, most=2))
        metrics = {one.name: one.last for one in page.series if not one.name.startswith("system.")}
        shown = shown.model_copy(update={"metrics": metrics})
    if view.job.state is JobState.FAILED and (failed := trainings.at_fault(view.job)) is not None:
        shown = trainings.with_reason(shown, await _last_said(gateway, failed), MARK)
    return shown


async def listed(
    gateway: Gateway, principal: Principal, filters: trainings.Filters, link: Callable[[str], str]
) -> trainings.TrainingPage:
    """Return a page of trainings, newest first: one's own, or everybody's to administrators."""
    everything = filters.owner is None and access.may(principal, Action.SEE_EVERYTHING)
    query = JobListQuery(
        owner_id=None if everything else principal.user_id,
        states=trainings.states_of(filters.status),
        view="training",
        name=filters.name,
        limit=filters.limit,
        cursor=filters.cursor,
    )
    page = await gateway.ask(JOB_LIST, query)
    firsts = await asyncio.gather(*(_first(gateway, view) for view in page.jobs))
    found = [trainings.document(view, link, first) for view, first in zip(page.jobs, firsts, strict=True)]
    return trainings.TrainingPage(trainings=found, cursor=page.cursor)


async def _stored(gateway: Gateway, principal: Principal, content: bytes) -> Artifact:
    async def once() -> AsyncIterator[bytes]:
        yield content

    stored = await files.store(gateway, principal, once(), "training.zip", "application/zip")
    if stored.artifact_id is None:
        raise WherryError("internal", "Storage kept an upload without an artifact.")
    return Artifact(
        id=stored.artifact_id, owner_id=principal.user_id, blob=stored.blob, name="training.zip", created_at=utc_now()
    )


async def _first(gateway: Gateway, view: JobView) -> JobView | None:
    """Return the job that leads a distributed training that has begun; None of any other."""
    first = trainings.leading(view.job)
    if first is None or first == view.job.id or trainings.status_of(view.job) == "initializing":
        return None
    try:
        return await gateway.ask(JOB_GET, JobQuery(job_id=first))
    except NotFound:
        return None


async def _last_said(gateway: Gateway, job_id: str) -> str:
    """Return the end of what a job that has ended said on its standard error; nothing where that was not kept."""
    try:
        job = (await gateway.ask(JOB_GET, JobQuery(job_id=job_id))).job
        _, blob = await files.one(gateway, job, _STDERR)
    except NotFound:
        return ""
    start = max(0, blob.size - _TAIL_BYTES)
    return b"".join([piece async for piece in files.read(gateway, blob, start)]).decode(errors="replace")
