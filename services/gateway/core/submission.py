"""From what a user sent to the job that is recorded: rules, identity under a key, and what is filled in."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from services.gateway.core import mapping
from services.gateway.core.access import Action, may
from services.gateway.core.problems import invalid
from shared.errors import FieldProblem, WherryError
from shared.job import Job, Owner
from shared.requests.accounts import Principal
from shared.spec import SPEC_BYTES_MAX, JobSpec, Notify

#: Longest Idempotency-Key, as in the spec's own field.
KEY_LENGTH_MAX = 255


def effective_key(header: str | None, spec: JobSpec) -> str | None:
    """Return the idempotency key: the header's, else the spec's.

    Raises:
        WherryError: ``invalid``: two different ones, or one that is empty or too long.
    """
    if header is None:
        return spec.idempotency_key
    check_key(header)
    if spec.idempotency_key not in (None, header):
        message = "Not the same as the Idempotency-Key header; send one of the two"
        raise invalid([FieldProblem(field="idempotency_key", message=message)])
    return header


def check_key(header: str | None) -> None:
    """Check an Idempotency-Key header.

    Raises:
        WherryError: ``invalid``: it is empty or too long.
    """
    if header is not None and not 0 < len(header) <= KEY_LENGTH_MAX:
        raise invalid([FieldProblem(field="Idempotency-Key", message=f"Give 1 to {KEY_LENGTH_MAX} characters")])


def require_own(job: Job) -> None:
    """Let a job pass that somebody has handed in: a member of another is nothing by itself.

    Raises:
        WherryError: ``conflict``: it is one; the message names its parent.
    """
    place = job.member_of
    if place is not None:
        message = f"Job {job.id} is {place.role} {place.index} of job {place.gang_id} and runs only with it"
        raise WherryError("conflict", f"{message}: rerun {place.gang_id}.")


def check_sent(spec: JobSpec) -> JobSpec:
    """Return a spec that came from a user, if it has only what is for users.

    Raises:
        WherryError: ``invalid``.
    """
    if spec.view != "job":
        raise invalid([FieldProblem(field="view", message="There is no such field")])
    if wrong := mapping.unusable(spec):
        raise invalid(wrong)
    return spec


def check(spec: JobSpec, principal: Principal, sent_bytes: int) -> None:
    """Check what the model itself cannot.

    Raises:
        WherryError: ``too_large``, ``invalid`` or ``forbidden_address``.
    """
    # A spec as it travels is at most a little longer than it was sent: measure only where it could matter.
    if sent_bytes > SPEC_BYTES_MAX // 2 and _recorded_bytes(spec) > SPEC_BYTES_MAX:
        raise WherryError("too_large", f"A job spec may have {SPEC_BYTES_MAX} bytes; send large things as artifacts.")
    if wrong := mapping.not_json(spec.params, "params"):
        raise invalid(wrong)
    for index, notify in enumerate(spec.notify):
        _check_notify(index, notify, principal)


def _recorded_bytes(spec: JobSpec) -> int:
    """Return how long the spec is as it travels: a map job's items travel by themselves."""
    return len(mapping.without_items(spec).model_dump_json(exclude_defaults=True))


def digest(spec: JobSpec, source_sha256: str | None, request: str = "") -> str:
    """Return the SHA-256 (hex) of the spec's canonical JSON without its key. The source counts by its bytes.

    What names the *request* counts too where the id alone does not: of two that want one name, one has asked for it.
    """
    plain = spec.model_dump(mode="json", exclude_defaults=True, exclude={"idempotency_key"})
    if source_sha256 is not None:
        plain["source"] = f"sha256:{source_sha256}"
    if request:
        plain["idempotency_key"] = request
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def secrets_given(spec: JobSpec) -> Iterator[tuple[int, str]]:
    """Yield the index in `notify` and the value of every webhook secret in the spec."""
    for index, notify in enumerate(spec.notify):
        if notify.webhook is not None and notify.webhook.secret is not None:
            yield index, notify.webhook.secret


def completed(spec: JobSpec, principal: Principal, secret_refs: Mapping[int, str], source: str | None) -> JobSpec:
    """Return the spec as it is recorded: without key, secrets and items, notifying the owner if nobody else."""
    spec, changes = mapping.without_items(spec), dict[str, Any]()
    if spec.idempotency_key is not None:
        changes["idempotency_key"] = None
    if source is not None:
        changes["source"] = source
    if secret_refs:
        changes["notify"] = tuple(_without_secret(item, secret_refs.get(i)) for i, item in enumerate(spec.notify))
    elif not spec.notify and principal.email:
        changes["notify"] = (Notify(email=principal.email),)
    return spec.model_copy(update=changes) if changes else spec


def new_job(job_id: str, spec: JobSpec, owner: Owner, spec_digest: str, now: datetime) -> Job:
    """Return the job as its first event carries it."""
    return Job(id=job_id, owner=owner, spec=spec, spec_digest=spec_digest, created_at=now, updated_at=now)


def owner_of(principal: Principal) -> Owner:
    """Return the owner of what *principal* hands in."""
    return Owner(id=principal.user_id, name=principal.name, email=principal.email)


def same_request(existing: Job, spec_digest: str) -> None:
    """Let a repeat of the same request pass.

    Raises:
        WherryError: ``idempotency_conflict``: the job under this key came from another spec.
    """
    if existing.spec_digest != spec_digest:
        raise WherryError(
            "idempotency_conflict", f"This key was used for job {existing.id} with another spec. Use a new key."
        )


def _check_notify(index: int, notify: Notify, principal: Principal) -> None:
    if notify.webhook is not None and notify.webhook.secret_ref is not None:
        raise invalid([FieldProblem(field=f"notify.{index}.webhook.secret_ref", message="There is no such field")])
    if notify.email is None or may(principal, Action.NOTIFY_ANYONE):
        return
    if notify.email.casefold() != (principal.email or "").casefold():
        field = FieldProblem(field=f"notify.{index}.email", message="Only your own address may be notified")
        raise WherryError("forbidden_address", f"{notify.email} is not your own address.", fields=(field,))


def _without_secret(notify: Notify, ref: str | None) -> Notify:
    if notify.webhook is None or ref is None:
        return notify
    return notify.model_copy(update={"webhook": notify.webhook.model_copy(update={"secret": None, "secret_ref": ref})})
