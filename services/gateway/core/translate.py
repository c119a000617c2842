"""From messages to what clients see. A message of the bus is never shown as it is."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from services.gateway.core import views, views_files, views_people
from services.gateway.core.members import come_and_go
from shared.events import LogLine, MetricPoint, Progress
from shared.job import Attempt, Failure, GangMember, GangPlace, ItemCounts, Job, OutputsRef, PendingReason
from shared.manifest import Entry
from shared.requests.accounts import Principal, Session, User
from shared.requests.administration import Counts
from shared.requests.artifacts import Artifact, ArtifactList, Resumable
from shared.requests.blobs import Committed
from shared.requests.jobs import DeliveryView, EventPage, JobView, LogPage, MetricPage
from shared.requests.outputs import OutputPage, SnapshotPage
from shared.spec import JobSpec

#: The words of the interface for the two streams, and the letters of the bus.
STREAMS: dict[str, Literal["stdout", "stderr"]] = {"o": "stdout", "e": "stderr"}
LETTERS: dict[str, Literal["o", "e"]] = {"stdout": "o", "stderr": "e", "o": "o", "e": "e"}


def session(answer: Session) -> views_people.SessionView:
    """Return a login."""
    who = answer.principal
    return views_people.SessionView(user=who.name, role=who.role, token=answer.token, expires_at=answer.expires_at)


def me(principal: Principal) -> views_people.Me:
    """Return who is calling."""
    return views_people.Me(id=principal.user_id, user=principal.name, role=principal.role, email=principal.email)


def status(counts: Counts, workloads: Sequence[str], system_name: str, now: datetime) -> views.StatusView:
    """Return the system at a glance."""
    return views.StatusView(
        system_name=system_name, server_time=now, active_workloads=list(workloads),
        jobs=views.JobCounts(total=sum(counts.jobs.values()), by_state=counts.jobs),
        nodes=views.NodeCounts(
            total=counts.nodes_total, online=counts.nodes_online,
            **{name: counts.conditions.get(name, 0) for name in ("suspect", "lost", "left")},
            **{name: counts.duties.get(name, 0) for name in ("cordoned", "draining", "drained")},
        ),
    )  # fmt: skip


def job(view: JobView, *, with_spec: bool) -> views.JobDocument:
    """Return a job as its owner sees it."""
    item = view.job
    return views.JobDocument(
        job_id=item.id, name=item.spec.name, state=item.state, kind=item.spec.kind, owner=item.owner.name,
        owner_id=item.owner.id, node=item.attempts[-1].node if item.attempts else None,
        progress=progress(view.progress) if view.progress else None,
        attempts=[attempt(one) for one in item.attempts], tries=item.tries, losses=item.losses,
        created_at=item.created_at, started_at=_started_at(item), updated_at=item.updated_at, ended_at=item.ended_at,
        not_before=item.not_before, cancel_requested_at=item.cancel_requested_at,
        needs=[views.NeedView(job=one.job, on=one.on) for one in item.spec.needed()],
        members=members(item), member_of=member_of(item.member_of),
        pending=pending(item.pending), items=item_counts(item.items),
        outputs=outputs(item.outputs), error=failure(item.error), remarks=list(item.remarks),
        labels=list(item.spec.labels), spec=without_secrets(item.spec) if with_spec else None,
    )  # fmt: skip


def item_counts(counts: ItemCounts | None) -> views.ItemCountsView | None:
    """Return how far a map job is."""
    if counts is None:
        return None
    return views.ItemCountsView(
        total=counts.total, succeeded=counts.succeeded, failed=counts.failed, closed=counts.closed
    )


def members(item: Job) -> list[views.MemberView]:
    """Return a job's members. One that has ended is not told how its last workers or replicas end: it shows none."""
    return [] if item.is_terminal and come_and_go(item) else [member(one) for one in item.members]


def member(item: GangMember) -> views.MemberView:
    """Return a member as its gang knows it."""
    return views.MemberView(
        job_id=item.job_id, role=item.role, index=item.index, node=item.node, state=item.state,
        exit_code=item.exit_code, error=failure(item.error),
    )  # fmt: skip


def member_of(item: GangPlace | None) -> views.MemberOfView | None:
    """Return what a job is in its gang, if it is in one."""
    return None if item is None else views.MemberOfView(**item.model_dump())


def pending(reasons: Iterable[PendingReason]) -> list[views.PendingView]:
    """Return why a job waits."""
    return [views.PendingView(code=one.code, nodes=one.nodes, message=one.message) for one in reasons]


def attempt(item: Attempt) -> views.AttemptView:
    """Return one try of a job."""
    return views.AttemptView(
        number=item.number, node=item.node, state=item.state, phase=item.phase, gpus=list(item.gpus), score=item.score,
        image_digest=item.image_digest, placed_at=item.placed_at, starting_at=item.starting_at,
        running_at=item.running_at, finishing_at=item.finishing_at, ended_at=item.ended_at, exit_code=item.exit_code,
        error=failure(item.error), outputs=outputs(item.outputs), peaks=item.peaks,
    )  # fmt: skip


def without_secrets(spec: JobSpec) -> JobSpec:
    """Return *spec* without webhook secrets and without the references to them."""
    if all(item.webhook is None for item in spec.notify):
        return spec
    bare = [
        item if item.webhook is None
        else item.model_copy(update={"webhook": item.webhook.model_copy(update={"secret": None, "secret_ref": None})})
        for item in spec.notify
    ]  # fmt: skip
    return spec.model_copy(update={"notify": tuple(bare)})


def failure(item: Failure | None) -> views.FailureView | None:
    """Return why something did not succeed."""
    return None if item is None else views.FailureView(reason=item.reason, message=item.message)


def outputs(item: OutputsRef | None) -> views.OutputsView | None:
    """Return the totals of what was left."""
    return None if item is None else views.OutputsView(files=item.files, bytes=item.bytes)


def progress(item: Progress) -> views.ProgressView:
    """Return how far a job says it is."""
    return views.ProgressView(fraction=item.fraction, message=item.message, at=item.at)


def line(item: LogLine) -> views.LineView:
    """Return one line of output."""
    return views.LineView(n=item.n, t=item.t, stream=STREAMS.get(item.s, "stdout"), text=item.x, item=item.i or None)


def log(page: LogPage) -> views.LogDocument:
    """Return lines as JSON."""
    return views.LogDocument(attempt=page.attempt, lines=[line(item) for item in page.lines], more=page.more)


def lost_text(first: int, last: int) -> str:
    """Return the line that stands for lines *first* to *last*."""
    return (
        f"[wherry: line {first} is missing]\n" if first == last else f"[wherry: lines {first} to {last} are missing]\n"
    )


def point(item: MetricPoint) -> views.PointView:
    """Return one value."""
    return views.PointView(name=item.name, value=item.value, step=item.step, at=item.at)


def metrics(page: MetricPage) -> views.MetricsDocument:
    """Return what an attempt measured."""
    series = [
        views.SeriesView(name=one.name, count=one.count, min=one.least, max=one.greatest, last=one.last)
        for one in page.series
    ]
    return views.MetricsDocument(attempt=page.attempt, series=series, points=[point(one) for one in page.points])


def events(page: EventPage, after_seq: int) -> views.EventsDocument:
    """Return CloudEvents as a list."""
    cursor = page.events[-1].seq if page.events else after_seq
    return views.EventsDocument(events=[json.loads(item.event) for item in page.events], cursor=cursor)


def entry(item: Entry) -> views_files.EntryView:
    """Return one file or folder."""
    size, sha256 = (item.blob.size, item.blob.sha256) if item.blob else (0, None)
    return views_files.EntryView(
        path=item.path, kind=item.kind, mode=item.mode, mtime=item.mtime, size=size, sha256=sha256
    )


def entries(page: OutputPage) -> views_files.OutputsDocument:
    """Return a page of what a job left."""
    return views_files.OutputsDocument(
        entries=[entry(item) for item in page.entries], cursor=page.cursor, skipped=list(page.skipped)
    )


def seen(look: str, found: SnapshotPage) -> views_files.OutputsDocument:
    """Return a page of what a running job has left so far."""
    update = {"partial": True, "look": look, "taken_at": found.taken_at, "attempt": found.attempt}
    return entries(found.page).model_copy(update=update)


def notification(item: DeliveryView) -> views.NotificationView:
    """Return one notification."""
    return views.NotificationView(
        id=item.id, kind=item.kind, target=item.target, event=item.event, state=item.state, tries=item.tries,
        detail=item.detail, requested_at=item.requested_at, updated_at=item.updated_at, next_at=item.next_at,
    )  # fmt: skip


def committed(item: Committed) -> views_files.ArtifactView:
    """Return what an upload became."""
    return views_files.ArtifactView(artifact_id=item.artifact_id or "", sha256=item.blob.sha256, size=item.blob.size)


def artifact(item: Artifact) -> views_files.ArtifactView:
    """Return an artifact's facts."""
    return views_files.ArtifactView(artifact_id=item.id, sha256=item.blob.sha256, size=item.blob.size)


def artifacts(page: ArtifactList) -> views_files.ArtifactsDocument:
    """Return a page of artifacts."""
    found = [
        views_files.ArtifactEntry(
            artifact_id=item.id, sha256=item.blob.sha256, size=item.blob.size, name=item.name,
            media_type=item.media_type, owner_id=item.owner_id, created_at=item.created_at,
        )
        for item in page.artifacts
    ]  # fmt: skip
    return views_files.ArtifactsDocument(artifacts=found, cursor=page.cursor)


def upload(item: Resumable) -> views_files.UploadView:
    """Return how far an upload has come."""
    return views_files.UploadView(
        upload_id=item.upload_id, offset=item.offset, length=item.length, created_at=item.created_at,
        expires_at=None if item.artifact_id else item.expires_at, artifact_id=item.artifact_id, sha256=item.sha256,
    )  # fmt: skip


def user(item: User) -> views_people.UserView:
    """Return a user."""
    return views_people.UserView(
        id=item.id, name=item.name, role=item.role, email=item.email, disabled=item.disabled, created_at=item.created_at
    )


def _started_at(item: Job) -> datetime | None:
    return next((one.running_at for one in item.attempts if one.running_at), None)
