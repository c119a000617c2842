"""Who may store and read which bytes. The asker's kind and id come from the subject: the broker vouches for them."""

from dataclasses import dataclass

from shared.errors import NotFound, WherryError
from shared.fleet import NodeRecord
from shared.job import Job
from shared.requests.blobs import BlobScope
from shared.spec import Input

#: The role of those members that are workers of a map job.
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class OwnerScope:
    """An upload that becomes an artifact of its owner."""

    owner_id: str
    name: str
    media_type: str


@dataclass(frozen=True, slots=True)
class AttemptScope:
    """An upload that belongs to what an attempt left, or (with `snapshot`) has left so far when somebody looked."""

    job_id: str
    attempt: int
    snapshot: str | None = None


def scope_of(kind: str, scope: BlobScope) -> OwnerScope | AttemptScope:
    """Return what an upload by an asker of *kind* is for.

    Raises:
        WherryError: ``forbidden``: a node may store only for attempts, a gateway only for owners.
    """
    if kind == "node" and scope.job_id and scope.attempt is not None and scope.owner_id is None:
        return AttemptScope(scope.job_id, scope.attempt, scope.snapshot)
    if kind == "gateway" and scope.owner_id and scope.job_id is None:
        return OwnerScope(scope.owner_id, scope.name, scope.media_type)
    raise WherryError("forbidden", "A node stores for its attempts and a gateway for owners, each for nothing else.")


def check_attempt(job: Job, node_id: str, attempt: int) -> None:
    """Return if *attempt* is the job's current one and is on *node_id*.

    Raises:
        WherryError: ``not_current``: it was replaced, ended or is somewhere else; its outputs no longer count.
    """
    current = job.current
    if current is None or current.number != attempt or current.node != node_id or job.is_terminal:
        raise WherryError("not_current", f"Attempt {attempt} of job {job.id} is not what this node runs now.")


def check_source(job: Job, node_id: str, artifact_id: str) -> None:
    """Return if *node_id* runs the job and *artifact_id* is the job's source.

    Raises:
        NotFound: it is not: a node sees the inputs of its own jobs and knows of no others.
    """
    current = job.current
    if current is None or current.node != node_id or job.is_terminal or job.spec.source != artifact_id:
        raise NotFound(f"There is no artifact {artifact_id} for this node.")


def input_of(job: Job, node_id: str, name: str) -> Input:
    """Return the input *name* of *job*, if *node_id* runs the job.

    Raises:
        NotFound: it does not, or the job has no such input.
    """
    current, given = job.current, job.spec.inputs.get(name)
    if current is None or current.node != node_id or job.is_terminal or given is None:
        raise NotFound(f"There is no input {name!r} for this node.")
    return given


def parent_of_worker(job: Job, node_id: str, item_id: str) -> str:
    """Return the map job whose worker *job* is, if *node_id* runs it.

    Raises:
        NotFound: it does not, or the job is no worker.
    """
    current, place = job.current, job.member_of
    if current is None or current.node != node_id or job.is_terminal or place is None or place.role != WORKER:
        raise NotFound(f"There is no item {item_id!r} for this node.")
    return place.gang_id


def prefetched(record: NodeRecord | None, prefetch_id: str) -> Input | None:
    """Return what a node is to have before a job wants it, by its record; None where that does not say so."""
    wanted = record.prefetches if record else ()
    return next((one.input for one in wanted if one.id == prefetch_id), None)


def check_input(job: Job, source: Job) -> None:
    """Return if *job* may have the outputs of *source*, and there are any.

    Raises:
        NotFound: they are somebody else's (which nobody is told), or the other job has not ended, or left nothing.
    """
    if source.owner.id != job.owner.id:
        raise NotFound(f"There is no job {source.id!r}.")
    if not source.is_terminal or source.outputs is None:
        raise NotFound(f"Job {source.id} has left no outputs (it is {source.state.value}).")


def ref_scope(scope: OwnerScope | AttemptScope, artifact_id: str | None) -> str:
    """Return the name under which a reference to the stored bytes is kept."""
    if isinstance(scope, AttemptScope):
        snapshot = scope.snapshot
        return live_ref(scope.job_id, snapshot) if snapshot else attempt_ref(scope.job_id, scope.attempt)
    return artifact_ref(artifact_id or "")


def live_ref(job_id: str, snapshot_id: str) -> str:
    """Return the name of the references of a look at a running job."""
    return f"live:{job_id}:{snapshot_id}"


def artifact_ref(artifact_id: str) -> str:
    """Return the name of an artifact's reference; of no artifact, how all of them begin."""
    return f"artifact:{artifact_id}"


def attempt_ref(job_id: str, attempt: int) -> str:
    """Return the name of an attempt's references."""
    return f"attempt:{job_id}:{attempt}"
