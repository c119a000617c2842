"""What must hold of a state at any time, as sentences. Run after every step in tests."""

from services.scheduler.core.clocks import waits_for_needs
from services.scheduler.core.fleet.state import State
from services.scheduler.core.lifecycle import HOLDING
from shared.job import ItemCounts
from shared.states import AttemptState, JobState

_COLD = (AttemptState.PLACED, AttemptState.STARTING)


def check(state: State) -> list[str]:
    """Return every broken rule; an empty list is a sound state."""
    return [*_jobs(state), *_nodes(state), *_books(state)]


def _jobs(state: State) -> list[str]:
    wrong: list[str] = []
    on_nodes = {job_id for node in state.nodes.values() for job_id in node.jobs}
    for job_id, tracked in state.jobs.items():
        job = tracked.job
        if job.id != job_id:
            wrong.append(f"{job_id} is filed under another job's id")
        if job.is_terminal:
            wrong.append(f"{job_id} has ended and is still tracked")
        is_placed, waits = job.state in HOLDING, job_id in state.line
        if (is_placed and job.spec.kind == "run") != (job_id in on_nodes):  # what a gang has its members hold
            wrong.append(f"{job_id} is {job.state} and its node does not agree")
        if is_placed and waits:
            wrong.append(f"{job_id} is {job.state} and in the queue")
        if job_id in state.needs and (waits or not waits_for_needs(job)):
            wrong.append(f"{job_id} waits for its needs, and does not")
        is_lined_up = job.spec.kind not in ("map", "service")  # of those, their members are
        is_due = job.state is JobState.QUEUED and job.not_before is None and is_lined_up
        if is_due and not waits and job_id not in state.needs:
            wrong.append(f"{job_id} is queued and not in the queue")
    return wrong


def _books(state: State) -> list[str]:
    wrong: list[str] = []
    for job_id, book in state.books.items():
        told = state.jobs[job_id].job.items if job_id in state.jobs else None
        if job_id not in state.jobs:
            wrong.append(f"{job_id} has ended, and its items are kept")
        elif _without_bytes(told or ItemCounts()) != book.counts(closed=told is not None and told.closed):
            wrong.append(f"{job_id} tells of {told}, its items are {book.counts(closed=False)}")
        wrong += [f"{job_id}: {broken}" for broken in book.check()]
    return wrong


def _without_bytes(counts: ItemCounts) -> ItemCounts:
    return counts.model_copy(update={"bytes": 0})  # nobody else counts them: what has succeeded is not kept


def _nodes(state: State) -> list[str]:
    wrong: list[str] = []
    if state.fleet_size != (there := sum(not node.is_lost for node in state.nodes.values())):
        wrong.append(f"{state.fleet_size} nodes are counted, {there} are there")
    for node in state.nodes.values():
        held = [state.jobs[job_id] for job_id in node.jobs if job_id in state.jobs]
        if len(held) != len(node.jobs):
            wrong.append(f"{node.id} has a job that is not tracked")
        needs = [t.need for t in held]
        promised = (sum(n.ucpus for n in needs), sum(n.memory for n in needs), sum(n.disk for n in needs))
        if promised != (node.ucpus, node.memory, node.disk):
            wrong.append(f"{node.id} promises {(node.ucpus, node.memory, node.disk)}, its jobs have {promised}")
        cold = sum(t.need.memory for t in held if t.job.attempts[-1].state in _COLD)
        if cold != node.cold_memory:
            wrong.append(f"{node.id} counts {node.cold_memory} bytes as not in use yet, it is {cold}")
        gpus = {gpu: t.job.id for t in held for gpu in t.job.attempts[-1].gpus}
        if gpus != node.gpus or len(gpus) != sum(len(t.job.attempts[-1].gpus) for t in held):
            wrong.append(f"{node.id} promises the GPUs {node.gpus}, its jobs have {gpus}")
        keys = {(t.job.id, t.job.attempt) for t in held}
        if not node.accepted <= keys or not set(node.missing) | set(node.delivered) <= keys:
            wrong.append(f"{node.id} remembers attempts that are not current")
    return wrong
