"""What must hold after a chaos run, decided from the evidence alone. No IO."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.mix import EXIT_OF_FAILURE, Plan

ENDS = frozenset({"succeeded", "failed", "cancelled", "timed_out"})


@dataclass(frozen=True, slots=True)
class Logged:
    """One event of a job as the stream has it; `at` in seconds since 1970."""

    seq: int
    name: str
    at: float
    job: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hook:
    """One webhook as it arrived: the target's path, the webhook-id, and what it said."""

    path: str
    webhook_id: str
    job_id: str
    event: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to a process, when (seconds since 1970) and for how long; a kill lasts no time."""

    at: float
    target: str
    kind: str
    for_s: float = 0.0


@dataclass(slots=True)
class Evidence:
    """All that a run left behind.

    Attributes:
        accepted: jobs that were answered with 202, by id.
        log: events of each job in order of their sequence.
        views: the state that the gateway shows of each job.
        outputs: what was downloaded; None where there was no answer of 200.
        starts: how often the program of (job, attempt) was started.
        orphans: containers, volumes and processes that should be gone.
        pending: what durable consumers still have to do, by name.
        dead_letters: messages on the dead-letter stream.
        hooks: webhooks that arrived.
    """

    accepted: dict[str, Plan] = field(default_factory=dict)
    log: dict[str, list[Logged]] = field(default_factory=lambda: defaultdict(list))
    views: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, bytes | None] = field(default_factory=dict)
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)
    pending: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    hooks: list[Hook] = field(default_factory=list)

    def ends(self, job_id: str) -> list[Logged]:
        """Return the job's terminal events."""
        return [event for event in self.log.get(job_id, ()) if event.name in ENDS]


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which, and on what."""

    kind: str
    detail: str


def violations(found: Evidence) -> list[Violation]:
    """Return every broken promise."""
    each = (_of_job(found, job_id, plan) for job_id, plan in found.accepted.items())
    return [*(one for some in each for one in some), *_of_hooks(found), *_of_all(found)]


def hit_share(found: Evidence, faults: Sequence[Fault]) -> float:
    """Return the share of ended jobs in whose lifetime a fault struck a process on their path (0 to 1)."""
    ended = [job_id for job_id in found.accepted if found.ends(job_id)]
    return sum(_is_hit(found, job_id, faults) for job_id in ended) / len(ended) if ended else 0.0


def phases(found: Evidence) -> dict[str, float]:
    """Return the mean seconds that ended jobs spent after each kind of event, until the next."""
    spent: dict[str, float] = defaultdict(float)
    ended = [job_id for job_id in found.accepted if found.ends(job_id)]
    for job_id in ended:
        for one, following in itertools.pairwise(found.log[job_id]):
            spent[one.name] += following.at - one.at
    return {name: total / len(ended) for name, total in spent.items()}


def _is_hit(found: Evidence, job_id: str, faults: Iterable[Fault]) -> bool:
    log, end = found.log[job_id], found.ends(job_id)[0]
    nodes = {attempt["node"] for attempt in end.job.get("attempts", ())}
    return any(
        fault.at <= end.at and fault.at + fault.for_s >= log[0].at and _on_path(fault.target, nodes) for fault in faults
    )


def _on_path(target: str, nodes: set[str]) -> bool:
    kind, _, node = target.partition("@")
    return (node or "local") in nodes if kind == "node_agent" else kind != "notifier"


def _of_job(found: Evidence, job_id: str, plan: Plan) -> Iterator[Violation]:
    what, ends = f"{job_id} ({plan.tag}, {plan.kind})", found.ends(job_id)
    if not ends:
        last = found.log[job_id][-1].name if found.log.get(job_id) else "nothing"
        yield Violation("lost", f"{what} has no end; its last event is {last}")
        return
    if len(ends) > 1:
        yield Violation("two_outcomes", f"{what} ended {len(ends)} times: {[(end.seq, end.name) for end in ends]}")
    yield from _of_end(what, plan, ends[0])
    if (view := found.views.get(job_id)) != ends[0].name:
        yield Violation("wrong_view", f"{what} is {ends[0].name} in the log and {view} at the gateway")
    if plan.size and ends[0].name == plan.end:
        yield from _of_output(what, plan, ends[0].job["attempt"], found.outputs.get(job_id))


def _of_end(what: str, plan: Plan, end: Logged) -> Iterator[Violation]:
    if end.name != plan.end:
        error = end.job.get("error")
        yield Violation("wrong_end", f"{what} is {end.name}, not {plan.end}: {error}")
    elif plan.kind == "fails":
        code = end.job["attempts"][-1].get("exit_code")
        if (code, end.job["tries"]) != (EXIT_OF_FAILURE, plan.max_attempts):
            yield Violation("wrong_end", f"{what} failed with exit code {code} after {end.job['tries']} tries")


def _of_output(what: str, plan: Plan, attempt: int, got: bytes | None) -> Iterator[Violation]:
    if got != plan.output(attempt):
        start = got[:40] if got is not None else None
        yield Violation("wrong_output", f"{what} has not the output of attempt {attempt}, but {start!r}")


def _of_hooks(found: Evidence) -> Iterator[Violation]:
    by_path: dict[str, list[Hook]] = defaultdict(list)
    jobs_of_id: dict[str, set[str]] = defaultdict(set)
    for hook in found.hooks:
        by_path[hook.path].append(hook)
        jobs_of_id[hook.webhook_id].add(hook.path)
    for job_id, plan in found.accepted.items():
        if not plan.notify or not (ends := found.ends(job_id)):
            continue
        hooks = by_path[plan.hook_path]
        if not any(hook.job_id == job_id and hook.event == ends[0].name for hook in hooks):
            yield Violation("missed_notification", f"{job_id} ({plan.tag}): {hooks or 'nothing'} arrived")
        if len(ids := {hook.webhook_id for hook in hooks}) > 1:
            yield Violation("notification_ids", f"{job_id} ({plan.tag}) was told of under {len(ids)} ids: {ids}")
    for webhook_id, paths in jobs_of_id.items():
        if len(paths) > 1:
            yield Violation("notification_ids", f"{webhook_id} went to {sorted(paths)}")


def _of_all(found: Evidence) -> Iterator[Violation]:
    for (job_id, attempt), times in found.starts.items():
        if times > 1:
            yield Violation("started_twice", f"attempt {attempt} of {job_id} was started {times} times")
    yield from (Violation("orphan", orphan) for orphan in found.orphans)
    for consumer, count in found.pending.items():
        if count:
            yield Violation("stuck", f"consumer {consumer} has {count} messages to do")
    if found.dead_letters:
        yield Violation("dead_letter", f"{found.dead_letters} messages could not be read")
