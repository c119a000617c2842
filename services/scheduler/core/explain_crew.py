"""How the members of a map job or a service are, in words: what `explain` says of the job itself."""

from collections.abc import Callable, Iterable

from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.words import count
from shared.job import GangMember, ItemCounts, Job
from shared.requests.explain import Explanation
from shared.states import JobState

_NAMED_MAX = 3  # nodes that a sentence names


def explain_crew(state: State, job: Job, explain: Callable[[Tracked], Explanation]) -> Explanation:
    """Return what the members of *job* wait for, by *explain* of the first that waits for a node; else how they are."""
    said = _how_they_are(state, job)
    waiting = next((one.job_id for one in job.members if one.job_id in state.line), None)
    if waiting is not None:
        found = explain(state.jobs[waiting])
        return found.model_copy(update={"state": job.state.value, "text": f"{said} One that waits: {found.text}"})
    reasons = job.pending if job.state is JobState.QUEUED else ()
    told = [said, *(f"{reason.message[:1].upper()}{reason.message[1:]}." for reason in reasons)]
    return Explanation(
        state=job.state.value,
        would_start=bool(job.members),
        reasons=reasons,
        queue_length=len(state.line),
        nodes_considered=sum(one.beat is not None for one in state.nodes.values()),
        text=" ".join(told),
    )


def _how_they_are(state: State, job: Job) -> str:
    kind = "replica" if job.spec.service is not None else "worker"
    items = f"{_progress(job.items)} " if job.items is not None else ""
    return items + _at_work(state, job, kind)


def _progress(items: ItemCounts) -> str:
    failed = f", {items.failed} of them without a result" if items.failed else ""
    return f"Of its {count(items.total, 'item')} {items.ended} {'has' if items.ended == 1 else 'have'} ended{failed}."


def _at_work(state: State, job: Job, kind: str) -> str:
    if not job.members:
        return f"It has no {kind}."
    runs = [one for one in job.members if one.state is JobState.RUNNING]
    text = f"Of its {count(len(job.members), kind)} {len(runs) or 'none'} {'runs' if len(runs) < 2 else 'run'}"
    return f"{text} ({_where(state, runs)})." if runs else f"{text}."


def _where(state: State, members: Iterable[GangMember]) -> str:
    ids = list(dict.fromkeys(one.node for one in members))
    names = [state.nodes[node_id].info.name if node_id in state.nodes else node_id for node_id in ids[:_NAMED_MAX]]
    more = f" and {len(ids) - _NAMED_MAX} more" if len(ids) > _NAMED_MAX else ""
    return f"on {', '.join(names)}{more}"
