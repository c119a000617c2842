"""Who is to be told of a job's end."""

from datetime import datetime

from shared.events import DeliveryRequested, JobSummary
from shared.ids import keyed_id
from shared.job import Job
from shared.spec import Notify
from shared.states import JobState

#: The ends of a job: the events that somebody may want to be told of.
ENDS = frozenset({JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELLED.value, JobState.TIMED_OUT.value})
#: Not a secret: ids of deliveries need to be the same for the same event and target, not to be unguessable.
_ID_KEY = b"wherry delivery"


def deliveries(job: Job, event: str, event_id: str, at: datetime) -> tuple[DeliveryRequested, ...]:
    """Return one delivery for each target that wants to hear of *event*; none for events that are no ends.

    The ids come from the event and the target: the same event seen again asks for the same deliveries, and a target
    named twice is told once.
    """
    if event not in ENDS:
        return ()
    summary = summarise(job)
    found: dict[str, DeliveryRequested] = {}
    for notify in job.spec.notify:
        if event in notify.on:
            request = _request(notify, job, summary, event, event_id, at)
            found.setdefault(request.delivery_id, request)
    return tuple(found.values())


def _request(
    notify: Notify, job: Job, summary: JobSummary, event: str, event_id: str, at: datetime
) -> DeliveryRequested:
    kind = "webhook" if notify.webhook else "email"
    target = notify.webhook.url if notify.webhook else notify.email or ""
    return DeliveryRequested(
        delivery_id=keyed_id("d", _ID_KEY, event_id, kind, target),
        job_id=job.id,
        owner_id=job.owner.id,
        event_id=event_id,
        event=event,
        kind=kind,
        target=target,
        secret_ref=notify.webhook.secret_ref if notify.webhook else None,
        at=at,
        job=summary,
    )


def summarise(job: Job) -> JobSummary:
    """Return what a notification tells about *job*."""
    current = job.current
    return JobSummary(
        name=job.spec.name,
        state=job.state.value,
        error=job.error,
        files=job.outputs.files if job.outputs else 0,
        bytes=job.outputs.bytes if job.outputs else 0,
        attempts=job.attempt,
        created_at=job.created_at,
        running_at=current.running_at if current else None,
        ended_at=job.ended_at,
    )
