"""Deployments: made, changed, found by id or by name, and asked."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

from pydantic import ValidationError

from services.gateway.adapters.replica import Answer, Wish
from services.gateway.core import access, deployments, params, problems
from services.gateway.core.access import Action
from services.gateway.core.deployments import DeploymentChanges, DeploymentDocument, DeploymentPage, NewDeployment
from services.gateway.shell import models, replica_failure, submission
from services.gateway.shell.gateway import Gateway
from shared.bus import Record
from shared.channels import JOB_LIST, SERVICE_UPDATED
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.events import ServiceUpdated
from shared.ids import TOKEN, keyed_id, new_id
from shared.job import Job
from shared.requests.accounts import Principal
from shared.requests.jobs import JobListQuery
from shared.spec import JobSpec
from shared.states import JOB_TERMINAL, JobState

_WHAT = "such deployment"
_ID_CHARS = 26
_NAMES_MAX = 10_000
#: Of one name: those that are looked at, and how often others may be first until it counts as taken.
_NAMESAKES_MAX, _CLAIMS_MAX = 20, 5
_ACTIVE = tuple(sorted(set(JobState) - JOB_TERMINAL))


async def create(gateway: Gateway, principal: Principal, body: bytes, key: str | None) -> str:
    """Record the job of a new deployment and return its id.

    Raises:
        WherryError: ``name_taken``, ``invalid``; as `submission.submit`.
    """
    try:
        wish = NewDeployment.model_validate_json(body)
    except ValidationError as error:
        raise problems.from_validation(error, NewDeployment) from None
    return await make(gateway, principal, wish, key)


async def make(gateway: Gateway, principal: Principal, wish: NewDeployment, key: str | None) -> str:
    """Record the job of a deployment and return its id. A repeat under the same key returns the first one's.

    Raises:
        WherryError: ``name_taken``; as `submission.submit`.
    """
    image = await _default_image(gateway, wish.model)
    spec = _checked(lambda: deployments.spec_of(wish, image))
    size = len(spec.model_dump_json(exclude_defaults=True))
    claim = partial(_claim, gateway, principal, wish.name)
    for _ in range(_CLAIMS_MAX):
        try:
            return await submission.submit(gateway, principal, spec, size, key, claim=claim)
        except WherryError as error:
            if error.code != "idempotency_conflict":  # that is: somebody else was first
                raise
    raise _taken(wish.name)


async def find(gateway: Gateway, principal: Principal, ref: str, action: Action = Action.SEE) -> Job:
    """Return a deployment by its id, or one of the caller's by its name, as it was a moment ago.

    Raises:
        NotFound: there is none, or it is not for the caller.
    """
    if TOKEN.match(ref) and ref.startswith("j") and len(ref) == _ID_CHARS:
        try:
            job = await gateway.serving.job(ref)
        except NotFound:
            job = None
        if job is not None and job.spec.view == "deployment" and job.member_of is None:
            access.require_owned(principal, action, job.owner.id, _WHAT)
            return job
    return await _by_name(gateway, principal, ref)


async def listed(
    gateway: Gateway, principal: Principal, filters: deployments.Filters, link: Callable[[str], str]
) -> DeploymentPage:
    """Return a page of deployments, newest first: one's own, or everybody's to administrators."""
    everything = filters.owner is None and access.may(principal, Action.SEE_EVERYTHING)
    query = JobListQuery(
        owner_id=None if everything else principal.user_id,
        states=() if filters.ended else _ACTIVE,
        view="deployment",
        name=filters.name,
        limit=filters.limit,
        cursor=filters.cursor,
    )
    page = await gateway.ask(JOB_LIST, query)
    found = [deployments.document(view.job, link) for view in page.jobs if view.job.spec.service is not None]
    return DeploymentPage(deployments=found, cursor=page.cursor)


async def fresh(
    gateway: Gateway, principal: Principal, ref: str, link: Callable[[str], str], action: Action = Action.SEE
) -> DeploymentDocument:
    """Return a deployment, not older than the log at this moment.

    Raises:
        NotFound: there is none, or it is not for the caller.
    """
    found = await find(gateway, principal, ref, action)
    job = (await gateway.job(principal, found.id, action)).job
    shown = deployments.document(job, link)
    return shown.model_copy(update={"last_failure": await replica_failure.last(gateway, job)})


async def change(gateway: Gateway, principal: Principal, ref: str, changes: DeploymentChanges) -> Job:
    """Have other replicas, or another revision; return the deployment as it was before.

    Raises:
        WherryError: ``not_found``, ``not_running``: it has ended; ``invalid``; as `submission.check`.
    """
    job = await _changeable(gateway, principal, ref)
    if not changes.model_fields_set:
        return job
    spec: JobSpec | None = None
    if not deployments.only_replicas(changes):
        kept = None if changes.artifact is not None else job.spec.model
        image = await _default_image(gateway, changes.model or kept)
        before = await _as_given(gateway, job.spec) if changes.model is not None else job.spec
        ours = gateway.settings.serving_image
        spec = _checked(lambda: deployments.changed(before, changes, image, ours=ours))
        size = len(spec.model_dump_json(exclude_defaults=True))
        spec, _ = await submission.check(gateway, principal, spec, size)
    replicas = changes.replicas if "replicas" in changes.model_fields_set else None
    data = ServiceUpdated(replicas=replicas, spec=spec, by=principal.user_id, at=utc_now())
    event = gateway.bus.event(SERVICE_UPDATED, data, subject=job.id)
    await gateway.bus.record(Record(SERVICE_UPDATED, {"owner": job.owner.id, "job_id": job.id}, event))
    return job


async def remove(gateway: Gateway, principal: Principal, ref: str) -> Job:
    """Ask for a deployment to end; return it as it was before. Safe to repeat.

    Raises:
        WherryError: ``not_found``, ``unavailable``.
    """
    job = await find(gateway, principal, ref, Action.CHANGE)
    await submission.cancel(gateway, principal, job.id)
    return job


async def ask(gateway: Gateway, principal: Principal, job: Job, wish: Wish, held: AsyncExitStack) -> Answer:
    """Return what a deployment answers. Whoever asks holds a place (`Gateway.serve_places`).

    The room of a large answer is given back when *held* ends.

    Raises:
        WherryError: as `serving.Serving.ask`; ``busy``.
    """

    def room(size: int) -> Awaitable[None]:
        return held.enter_async_context(gateway.serve_answers.taken(job.owner.id, size))

    try:
        return await gateway.serving.ask(job.id, wish, by=principal.user_id, room=room)
    except WherryError as error:
        if error.code not in ("unavailable", "replicas_fail"):
            raise
        raise await replica_failure.explained(gateway, job.id, error) from None


async def _changeable(gateway: Gateway, principal: Principal, ref: str) -> Job:
    found = await find(gateway, principal, ref, Action.CHANGE)
    job = (await gateway.job(principal, found.id, Action.CHANGE)).job
    if job.is_terminal or job.cancel_requested_at is not None:
        raise WherryError("not_running", "The deployment has ended, or is about to.")
    return job


async def _by_name(gateway: Gateway, principal: Principal, name: str) -> Job:
    """Return a deployment of *principal*'s; which one has the name is remembered as long as it has not ended."""
    key = principal.user_id, name
    if (job_id := gateway.deployments.get(key)) is not None:
        with suppress(NotFound):  # it ended so long ago that nothing is kept of it
            job = await gateway.serving.job(job_id)
            if not job.is_terminal and job.cancel_requested_at is None:
                return job
        gateway.deployments.pop(key, None)
    job = await _named(gateway, principal, name)
    if job is None:
        raise access.missing(_WHAT)
    if len(gateway.deployments) >= _NAMES_MAX:
        gateway.deployments.clear()
    gateway.deployments[key] = job.id
    return job


async def _claim(gateway: Gateway, principal: Principal, name: str, request: str) -> str:
    """Return the id that a new deployment called *name* has: it follows from the one that had the name before.

    So two requests at the same moment, at whichever gateways, have the same id in mind, and one of them is recorded.

    Raises:
        WherryError: ``name_taken``.
    """
    query = JobListQuery(owner_id=principal.user_id, view="deployment", name=name, limit=_NAMESAKES_MAX)
    found = [view.job for view in (await gateway.ask(JOB_LIST, query)).jobs]
    if (same := next((job.id for job in found if job.spec_digest == request), None)) is not None:
        return same
    if any(not job.is_terminal and job.cancel_requested_at is None for job in found):
        raise _taken(name)
    before = [job.id for job in found] or [""]
    following = (keyed_id("j", gateway.key, principal.user_id, "deployment", name, one) for one in before)
    return next((job_id for job_id in following if job_id not in before), new_id("j"))


async def _named(gateway: Gateway, principal: Principal, name: str) -> Job | None:
    query = JobListQuery(owner_id=principal.user_id, states=_ACTIVE, view="deployment", name=name, limit=10)
    page = await gateway.ask(JOB_LIST, query)
    return next((view.job for view in page.jobs if view.job.cancel_requested_at is None), None)


async def _default_image(gateway: Gateway, model: str | None) -> str | None:
    """Return what serves where no image is named: none, where the catalogue's *model* is an image."""
    if model is not None and (await models.find(gateway, model))[1].image is not None:
        return None
    return gateway.settings.serving_image


async def _as_given(gateway: Gateway, spec: JobSpec) -> JobSpec:
    """Return *spec* without what its model's schema has filled in: another version may have other parameters."""
    if spec.model is None:
        return spec
    try:
        schema = (await models.find(gateway, spec.model))[1].params
    except NotFound:
        return spec
    return spec if schema is None else spec.model_copy(update={"params": params.given(schema, spec.params)})


def _taken(name: str) -> WherryError:
    return WherryError("name_taken", f"You have a deployment {name!r} already.")


def _checked(make_spec: Callable[[], JobSpec]) -> JobSpec:
    try:
        return make_spec()
    except ValidationError as error:
        raise problems.from_validation(error, JobSpec) from None
