"""Handing jobs in, asking for them to stop, and running them once more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any

from pydantic import ValidationError

from services.gateway.adapters.form import Part, parts
from services.gateway.adapters.zips import PassingZip, judge_stored
from services.gateway.core import needs, problems, submission
from services.gateway.core.access import Action
from services.gateway.core.mapping import with_over
from services.gateway.core.names import file_name
from services.gateway.shell import mapping, models
from services.gateway.shell.gateway import Gateway
from services.gateway.shell.inputs import Inputs
from shared.bus import Record, job_filter
from shared.channels import CANCEL_REQUESTED, JOB_CREATED, JOB_GET, SECRET_PUT
from shared.clock import utc_now
from shared.errors import Conflict, FieldProblem, NotFound, WherryError
from shared.events import CancelRequested, JobChanged
from shared.ids import keyed_id, new_id
from shared.job import Job, Owner
from shared.requests.accounts import Principal, SecretPut
from shared.requests.artifacts import Artifact
from shared.requests.blobs import BlobScope, Committed
from shared.requests.jobs import JobQuery
from shared.spec import JobSpec
from shared.states import JobState

#: Gives the id of a new job, told the digest of the request for it.
Claim = Callable[[str], Awaitable[str]]


def parse_spec(body: bytes | str) -> JobSpec:
    """Return the job spec that *body* is.

    Raises:
        WherryError: ``invalid_json`` or ``invalid``.
    """
    try:
        return submission.check_sent(JobSpec.model_validate_json(body))
    except ValidationError as error:
        raise problems.from_validation(error, JobSpec) from None


async def submit(
    gateway: Gateway, principal: Principal, spec: JobSpec, size: int, key_header: str | None,
    uploaded: Artifact | None = None, inputs: Inputs | None = None, claim: Claim | None = None,
) -> str:  # fmt: skip
    """Record a new job and return its id; a repeat under the same key returns the first one's.

    Args:
        gateway: where.
        principal: whose job it will be.
        spec: as sent.
        size: bytes of the spec as sent.
        key_header: the Idempotency-Key header.
        uploaded: the source that came with the spec.
        inputs: who looks inputs up, for all jobs of one request.
        claim: gives the id, where only one job may have what this one is to have.

    Raises:
        WherryError: see `services.gateway.core.submission`; ``unavailable``: not recorded in time;
            ``idempotency_conflict``: another request has recorded another job under this id.
    """
    key = submission.effective_key(key_header, spec)
    recorded, source = await check(gateway, principal, spec, size, uploaded, inputs)
    items = await mapping.of_spec(gateway, principal, spec, recorded)
    # Only a repeat under a key is ever compared: a random id that is there already is this very request's. It counts as
    # it was sent: a dataset's next version makes no other request of it.
    source_sha256 = source.blob.sha256 if source else None
    if claim is not None:
        digest = submission.digest(spec, source_sha256, key or new_id("r"))
        job_id = await claim(digest)
    else:
        digest = submission.digest(spec, source_sha256) if key else ""
        job_id = keyed_id("j", gateway.key, principal.user_id, key) if key else new_id("j")
    try:
        async with gateway.waiting.place(principal):
            secrets = submission.secrets_given(spec)
            refs = {index: await _put_away(gateway, principal, secret) for index, secret in secrets}
            final = submission.completed(recorded, principal, refs, source.id if source else None)
            owner = submission.owner_of(principal)
            job = await _record(gateway, submission.new_job(job_id, final, owner, digest, utc_now()))
    except WherryError as error:
        # A repeat of what was let in before is no more than it was: whoever lost the answer must get it.
        there = await _found(gateway, job_id, digest) if error.code == "quota_queued" and key else None
        if there is None:
            raise
        job = there
    if job.spec.inputs != recorded.inputs:  # a repeat, and a dataset has another version by now
        items = await mapping.of_spec(gateway, principal, spec, job.spec)
    await mapping.begin(gateway, job, items, by=principal.user_id)
    return job_id


async def check(
    gateway: Gateway, principal: Principal, spec: JobSpec, size: int,
    uploaded: Artifact | None = None, inputs: Inputs | None = None,
) -> tuple[JobSpec, Artifact | None]:  # fmt: skip
    """Check a spec of *size* bytes as far as can be known before it is recorded.

    Returns:
        the spec with its inputs as they are recorded, and its source, if it has one.

    Raises:
        WherryError: as `submit`.
    """
    submission.check(spec, principal, size)
    if spec.needs or spec.inputs:
        await _check_needs(gateway, principal, spec)
    spec = await models.resolved(gateway, spec)
    recorded = await (inputs or Inputs(gateway, principal)).recorded(with_over(spec))
    if uploaded is None and spec.source is not None:
        uploaded = await gateway.source(principal, spec.source)
    return recorded, uploaded


async def submit_batch(gateway: Gateway, principal: Principal, specs: Sequence[Any]) -> list[str | WherryError]:
    """Record many jobs, as few atomic batches; return an id or the reason against it for each."""
    inputs = Inputs(gateway, principal)

    async def one(raw: Any) -> str | WherryError:
        try:
            spec = submission.check_sent(JobSpec.model_validate(raw))
            size = len(spec.model_dump_json(exclude_defaults=True))
            return await submit(gateway, principal, spec, size, None, inputs=inputs)
        except ValidationError as error:
            return problems.from_validation(error, JobSpec)
        except WherryError as error:
            return error

    return await asyncio.gather(*(one(raw) for raw in specs))


async def submit_form(
    gateway: Gateway, principal: Principal, content_type: str, body: AsyncIterator[bytes], key_header: str | None
) -> str:
    """Record a job from a form with a `spec` and a `source`, in any order, and return its id.

    Raises:
        WherryError: as `submit`; ``bad_form``, ``bad_source``. Then nothing of the upload is left behind.
    """
    spec: JobSpec | None = None
    size = 0
    uploaded: Artifact | None = None
    async with gateway.uploads.taken():
        async for part in parts(content_type, body):
            if part.name == "spec" and spec is None:
                raw = await part.content(gateway.settings.spec_bytes_max)
                spec, size = parse_spec(raw), len(raw)
                submission.check(spec, principal, size)
                if spec.source is not None:
                    raise problems.invalid([_field("source", "Give an artifact here or a file in the form, not both")])
            elif part.name == "source" and uploaded is None:
                uploaded = await _take_source(gateway, principal, part)
            else:
                raise problems.invalid([_field(part.name, "A form has one `spec` and one `source`, and nothing else")])
    if spec is None:
        raise problems.invalid([_field("spec", "This part of the form is missing")])
    return await submit(gateway, principal, spec, size, key_header, uploaded)


async def cancel(gateway: Gateway, principal: Principal, job_id: str) -> JobState:
    """Ask for a job to stop; return its state before. Asking again, or too late, changes nothing.

    Raises:
        WherryError: ``not_found``, ``unavailable``.
    """
    job = (await gateway.job(principal, job_id, Action.CHANGE)).job
    if not job.is_terminal and job.cancel_requested_at is None:
        data = CancelRequested(by=principal.user_id, at=utc_now())
        event = gateway.bus.event(CANCEL_REQUESTED, data, subject=job_id)
        await gateway.bus.record(Record(CANCEL_REQUESTED, {"owner": job.owner.id, "job_id": job_id}, event))
    return job.state


async def rerun(
    gateway: Gateway, principal: Principal, job_id: str, key: str | None, *, everything: bool = False
) -> str:
    """Record a new job with the spec and the owner of another; return its id.

    Of a map job, which must have ended, it has the items without a result, or *everything*.

    Raises:
        WherryError: ``not_found``, ``unavailable``, ``conflict``: it is a part of another job; of a map job
            ``not_ended``, and ``conflict``: nothing is left.
    """
    job = (await gateway.job(principal, job_id, Action.CHANGE)).job
    submission.require_own(job)
    items = await mapping.left_over(gateway, job, everything=everything) if job.spec.map else []
    mine = principal.user_id == job.owner.id
    owner: Owner = submission.owner_of(principal) if mine else job.owner
    again = keyed_id("j", gateway.key, owner.id, f"rerun {job_id}", key) if key else new_id("j")
    once_more = submission.new_job(again, job.spec, owner, job.spec_digest, utc_now())
    try:
        async with gateway.waiting.place(principal) if mine else nullcontext():  # the limit is the owner's own
            recorded = await _record(gateway, once_more)
    except WherryError as error:
        there = await _found(gateway, again, job.spec_digest) if error.code == "quota_queued" and key else None
        if there is None:
            raise
        recorded = there
    await mapping.begin_again(gateway, recorded, items, by=principal.user_id)
    return again


async def check_form(gateway: Gateway, principal: Principal, content_type: str, body: AsyncIterator[bytes]) -> JobSpec:
    """Check a form as `submit_form` takes it, keeping nothing of it; return its spec as `check` does.

    Raises:
        WherryError: as `submit_form`.
    """
    spec: JobSpec | None = None
    size = 0
    async for part in parts(content_type, body):
        if part.name == "spec" and spec is None:
            raw = await part.content(gateway.settings.spec_bytes_max)
            spec, size = parse_spec(raw), len(raw)
        elif part.name == "source":
            async for _ in PassingZip(part.chunks()):
                pass  # it is judged when its last byte has passed
        else:
            raise problems.invalid([_field(part.name, "A form has one `spec` and one `source`, and nothing else")])
    if spec is None:
        raise problems.invalid([_field("spec", "This part of the form is missing")])
    return (await check(gateway, principal, spec, size))[0]


async def _check_needs(gateway: Gateway, principal: Principal, spec: JobSpec) -> None:
    if unusable := needs.unusable(spec):
        raise problems.invalid(unusable)
    named = [need.job for need in spec.needed()]
    owners = dict(zip(named, await asyncio.gather(*map(gateway.owner_of, named)), strict=True))
    if missing := needs.not_theirs(spec, principal, owners):
        raise problems.invalid(missing)


async def _found(gateway: Gateway, job_id: str, digest: str) -> Job | None:
    """Return what the same request has recorded before, if it has.

    Raises:
        WherryError: ``idempotency_conflict``: another one has, under the same key.
    """
    try:
        existing = await gateway.ask(JOB_GET, JobQuery(job_id=job_id))
    except NotFound:
        return None
    submission.same_request(existing.job, digest)
    return existing.job


async def _record(gateway: Gateway, job: Job) -> Job:
    """Record *job*, and return it as it is recorded: the same request may have done so before."""
    event = gateway.bus.event(JOB_CREATED, JobChanged(job=job), subject=job.id)
    params = {"owner": job.owner.id, "job_id": job.id}
    try:
        await gateway.bus.record_grouped(Record(JOB_CREATED, params, event, (job_filter(job.id), 0)))
    except Conflict:
        existing = await gateway.ask(JOB_GET, JobQuery(job_id=job.id))
        submission.same_request(existing.job, job.spec_digest)
        return existing.job
    return job


async def _put_away(gateway: Gateway, principal: Principal, secret: str) -> str:
    kept = await gateway.ask(SECRET_PUT, SecretPut(owner_id=principal.user_id, value=secret))
    if kept.ref is None:
        raise WherryError("internal", "Storage kept a secret without a reference.")
    return kept.ref


async def _take_source(gateway: Gateway, principal: Principal, part: Part) -> Artifact:
    zip_in = PassingZip(part.chunks())
    scope = BlobScope(
        owner_id=principal.user_id, name=file_name(part.filename or "") or "source.zip", media_type="application/zip"
    )
    stored: Committed = await gateway.blobs.upload(aiter(zip_in), scope)
    if not zip_in.judged:
        await judge_stored(gateway.blobs, stored.blob)
    if stored.artifact_id is None:
        raise WherryError("internal", "Storage kept an upload without an artifact.")
    artifact = Artifact(
        id=stored.artifact_id, owner_id=principal.user_id, blob=stored.blob, name=scope.name, created_at=utc_now()
    )
    gateway.remember_source(principal, artifact)
    return artifact


def _field(field: str, message: str) -> FieldProblem:
    return FieldProblem(field=field[:100], message=message)
