"""What an agent does about the attempts it was given. Facts in, effects out; time comes in as data.

The order of every turn is: decide (here), write the journal, act. What the acts find comes back as the next facts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.node_agent.core.attempt import BEFORE_END, PREPARING, STARTED, End, Held, Phase
from services.node_agent.core.container import Key
from services.node_agent.core.disk import over_disk
from services.node_agent.core.effects import (
    Abort,
    Attend,
    Clear,
    Collect,
    Drop,
    Effect,
    Follow,
    HeartbeatNow,
    NoteLease,
    Prepare,
    Report,
    Save,
    SaveEpoch,
    Start,
    StartNoMore,
    Stop,
)
from services.node_agent.core.ending import Outcome, by_reboot, failure_of
from services.node_agent.core.facts import (
    Cleared,
    Collected,
    Delivered,
    Desired,
    Exited,
    Fact,
    Failed,
    ImageFound,
    ImageMissing,
    OverDisk,
    Ready,
    Recovered,
    Staged,
    Started,
    Stuck,
    Tick,
    Unhealthy,
    Unkillable,
)
from services.node_agent.core.lease import Lease, Older
from services.node_agent.core.stopping import FENCED, UNKILLABLE, end_of, failed, overdue
from shared.events import AttemptFinished, AttemptFinishing, AttemptRunning, AttemptStarting
from shared.fleet import Assignment, DesiredState, HeldAttempt
from shared.job import Failure, OutputsRef
from shared.states import AttemptEventName, AttemptState, EndReason

_COMMAND_CHARS_MAX = 200
#: Seconds that a program which fills the disk has to end by itself.
_DISK_GRACE_S = 2.0
#: Attempts of which a node remembers that it once held them: more than any scheduler has stood still for.
DROPPED_KEPT = 10_000


@dataclass(slots=True)
class Machine:
    """All attempts of a node. `handle` is the only way to change it.

    Args:
        held: the journal's attempts.
        epoch: the highest seen.
        boot_id: names the machine's start.
        lease: the last that was granted; an agent before this one may have noted it.
        dropped: attempts that are no longer held, the oldest first; they never start here again, whoever wants it.
    """

    held: dict[Key, Held] = field(default_factory=dict[Key, Held])
    epoch: int = 0
    recovered: set[str] = field(default_factory=set[str])  # runtimes that have answered
    boot_id: str = ""
    lease: Lease | None = None
    dropped: dict[Key, None] = field(default_factory=dict[Key, None])
    older: Older | None = None  # set while only a scheduler answers that has seen less than this node

    def handle(self, fact: Fact, now: datetime) -> list[Effect]:
        """Take in *fact* and return what is to be done. Facts that come late or twice change nothing."""
        match fact:
            case Desired(state, asked_at):
                return self._desired(state, asked_at, now)
            case Recovered():
                self.recovered.add(fact.runtime)
                return [effect for held in self._of(fact.runtime) for effect in self._recover(held, fact, now)]
            case Tick(at):
                fenced = [] if at is None else self._fence_all(at, now)
                return fenced + [effect for held in list(self.held.values()) for effect in self._tick(held, now)]
            case _:
                held = self.held.get(fact.key)
                return [] if held is None else self._attempt(held, fact, now)

    @property
    def must_watch_lease(self) -> bool:
        """Return whether it holds something that must not run without a lease: a turn then begins with a look at it."""
        return any(held.order.spec.is_fenced for held in self.held.values())

    def attempts(self) -> tuple[HeldAttempt, ...]:
        """Return what the heartbeat says of the attempts."""
        return tuple(
            HeldAttempt(
                job_id=held.key.job_id,
                attempt=held.key.attempt,
                state=state.value,
                delivered=held.is_delivered,
                seq=held.order.seq,
            )
            for held in self.held.values()
            if (state := held.state(self.boot_id)) is not None
        )

    # --- the scheduler's wishes ---

    def _desired(self, state: DesiredState, asked_at: float | None, now: datetime) -> list[Effect]:
        if state.epoch < self.epoch:
            # It does not know yet that it leads no more, or its log was wiped. Its word is no lease either.
            if asked_at is not None:
                self.older = Older(state.epoch, self.older.since if self.older else asked_at)
            return []
        self.older = None
        if asked_at is not None:
            self.lease = Lease(asked_at, state.lease_s)
        effects: list[Effect] = []
        if state.epoch > self.epoch:
            self.epoch = state.epoch
            effects.append(SaveEpoch(state.epoch))
        for assignment in state.assignments:
            effects += self._assigned(assignment, now)
        if self.lease is not None and self.must_watch_lease:
            effects.append(NoteLease(self.lease))
        return effects

    def _assigned(self, assignment: Assignment, now: datetime) -> list[Effect]:
        key = Key(assignment.job_id, assignment.attempt)
        held = self.held.get(key)
        match assignment.action:
            # A scheduler that has stood still may want what was here and has ended since.
            case "start" if held is None and assignment.order is not None and key not in self.dropped:
                order = assignment.order
                save = self._save(Held(order=order, since=now))
                # Of a runtime that has not answered yet, `Recovered` begins with what was accepted meanwhile.
                return [save, Prepare(order)] if order.spec.runtime in self.recovered else [save]
            case "stop" if held is not None:
                return self._told_to_stop(held, assignment, now)
            case "forget" if held is not None:
                return self._forget(held, now)
            case _:
                return []

    def _told_to_stop(self, held: Held, assignment: Assignment, now: datetime) -> list[Effect]:
        end = end_of(assignment.reason, held.order.spec.timeouts)
        if held.phase is not Phase.FINISHING:
            return self._stop(held, end, assignment.grace_s, now)
        if held.stop is not None and assignment.reason is not EndReason.FINISHING_TIMEOUT:
            return []  # the stop that ended the program is repeated while what it left comes home
        return [*self._finish(held, held.stop or end, now), Abort(held.key)]

    def _stop(self, held: Held, end: End, grace_s: float, now: datetime) -> list[Effect]:
        if held.stop is not None or held.phase not in BEFORE_END:
            return []
        held = held.model_copy(update={"stop": end, "stop_grace_s": grace_s})
        if held.phase in PREPARING:
            return [*self._finish(held, end, now), Abort(held.key)]
        # While starting, nobody knows whether there is something to stop yet: `Started` will tell.
        return [self._save(held), Stop(held, grace_s) if held.phase in STARTED else StartNoMore(held.key)]

    def _fence_all(self, at: float, now: datetime) -> list[Effect]:
        """End what must not run twice, where nobody grants a lease: before another node may start it."""
        if self.lease is not None and not self.lease.is_fenced(at):
            return []
        grace_s = self.lease.grace_s(at) if self.lease else 0.0
        return [effect for held in list(self.held.values()) for effect in self._fence(held, grace_s, now)]

    def _fence(self, held: Held, grace_s: float, now: datetime) -> list[Effect]:
        if held.is_fenced or not held.order.spec.is_fenced or held.phase not in BEFORE_END:
            return []
        held = held.model_copy(update={"is_fenced": True})
        if held.stop is None:
            return self._stop(held, FENCED, grace_s, now)
        held = held.model_copy(update={"stop_grace_s": min(grace_s, held.stop_grace_s)})  # no later than this
        return [self._save(held), *([Stop(held, held.stop_grace_s)] if held.phase in STARTED else [])]

    def _forget(self, held: Held, now: datetime) -> list[Effect]:
        if held.is_cleared:
            return self._drop(held)
        if held.phase is Phase.FORGETTING:
            return []
        return self._clear(held.model_copy(update={"phase": Phase.FORGETTING, "since": now}))

    # --- what becomes of an attempt ---

    def _attempt(self, held: Held, fact: Fact, now: datetime) -> list[Effect]:
        if held.phase in PREPARING or held.phase is Phase.STARTING:
            return self._before_running(held, fact, now)
        if held.phase in STARTED:
            return self._while_running(held, fact, now)
        match (held.phase, fact):
            case (Phase.FINISHING, Collected()):
                return self._collected(held, fact, now)
            case (Phase.FINISHED, Delivered()) if not held.is_delivered:
                return [*self._clear(held.model_copy(update={"is_delivered": True})), HeartbeatNow()]
            case (Phase.FINISHED, Cleared()):
                return [self._save(held.model_copy(update={"is_cleared": True}))]
            case (Phase.FORGETTING, Cleared()):
                return self._drop(held)
            case _:
                return []

    def _before_running(self, held: Held, fact: Fact, now: datetime) -> list[Effect]:
        match (held.phase, fact):
            case (Phase.ACCEPTED, ImageMissing()):
                return self._report_starting(held, Phase.PULLING, "pull", now)
            case (Phase.ACCEPTED | Phase.PULLING, ImageFound(_, digest)):
                pinned = held.model_copy(update={"image_digest": digest})
                return self._report_starting(pinned, Phase.STAGING, "stage_in", now)
            case (Phase.STAGING, Staged(_, handle)):
                update = {"phase": Phase.STARTING, "since": now, "handle": handle, "boot_id": self.boot_id}
                held = held.model_copy(update=update)
                return [self._save(held), Start(held)]
            case (Phase.STARTING, Started()):
                return self._started(held, now)
            case (_, Failed(_, failure)):
                return self._finish(held, held.stop or End(state=AttemptState.FAILED, failure=failure), now)
            case _:
                return []

    def _while_running(self, held: Held, fact: Fact, now: datetime) -> list[Effect]:
        match (held.phase, fact):
            case (Phase.WARMUP, Ready()) if held.stop is None:
                return self._running(held, now)
            case (Phase.RUNNING, Unhealthy(_, why)):
                return self._stop(held, failed(EndReason.UNHEALTHY, why), held.stop_grace_s, now)
            case (Phase.RUNNING, Stuck(_, item)):
                why = f"It did not answer for the item {item} in time."
                return self._stop(held, failed(EndReason.ITEM_TIMEOUT, why), held.stop_grace_s, now)
            case (_, Exited(_, outcome)):
                return self._exited(held, outcome, now)
            case (_, Unkillable()):
                return self._finish(held, UNKILLABLE, now)
            case (_, OverDisk(_, used)):
                failure = over_disk(used, held.order.spec.resources.disk)
                return self._stop(held, End(state=AttemptState.FAILED, failure=failure), _DISK_GRACE_S, now)
            case _:
                return []

    def _report_starting(self, held: Held, phase: Phase, word: str, now: datetime) -> list[Effect]:
        held = held.model_copy(update={"phase": phase, "since": now})
        report = AttemptStarting(attempt=held.key.attempt, phase=word, at=now)
        return [self._save(held), Report(held.key, AttemptEventName.STARTING, report)]

    def _started(self, held: Held, now: datetime) -> list[Effect]:
        """Take in that the program runs: a replica is running only once it is ready."""
        if held.order.service is None:
            effects = self._running(held, now)
            return [*effects, *_stop_late(self.held[held.key])]
        effects = self._report_starting(held, Phase.WARMUP, "warmup", now)
        held = self.held[held.key]
        return [*effects, *_attend(held), *_stop_late(held)]

    def _running(self, held: Held, now: datetime) -> list[Effect]:
        held = held.model_copy(update={"phase": Phase.RUNNING, "since": now, "running_at": now})
        report = AttemptRunning(attempt=held.key.attempt, at=now, image_digest=held.image_digest)
        return [self._save(held), Report(held.key, AttemptEventName.RUNNING, report)]

    def _exited(self, held: Held, outcome: Outcome, now: datetime) -> list[Effect]:
        failure = failure_of(outcome, _command(held))
        if failure is not None and held.is_of_earlier_boot(self.boot_id):
            failure = by_reboot(outcome, failure)
        own = End(state=AttemptState.FAILED if failure else AttemptState.SUCCEEDED, failure=failure)
        held = held.model_copy(
            update={
                "phase": Phase.FINISHING,
                "since": now,
                "exit_code": outcome.exit_code,
                "end": held.stop or own,
            }
        )
        report = AttemptFinishing(attempt=held.key.attempt, at=now, exit_code=outcome.exit_code)
        return [self._save(held), Report(held.key, AttemptEventName.FINISHING, report), Collect(held)]

    def _collected(self, held: Held, fact: Collected, now: datetime) -> list[Effect]:
        end = held.end or End(state=AttemptState.FAILED)
        if fact.failure is not None and end.state is AttemptState.SUCCEEDED:
            end = End(state=AttemptState.FAILED, failure=fact.failure)  # a result that nobody can have is none
        return self._finish(held, end, now, fact.outputs, fact.remarks, fact.peaks)

    def _finish(
        self,
        held: Held,
        end: End,
        now: datetime,
        outputs: OutputsRef | None = None,
        remarks: tuple[str, ...] = (),
        peaks: Mapping[str, float] | None = None,
    ) -> list[Effect]:
        held = held.model_copy(update={"phase": Phase.FINISHED, "since": now, "end": end})
        report = AttemptFinished(
            attempt=held.key.attempt,
            at=now,
            state=end.state,
            exit_code=held.exit_code,
            error=end.failure,
            outputs=outputs,
            image_digest=held.image_digest,
            running_at=held.running_at,
            remarks=remarks,
            peaks=dict(peaks or {}),
        )
        return [self._save(held), Report(held.key, AttemptEventName.FINISHED, report)]

    # --- time, and what a restart finds ---

    def _tick(self, held: Held, now: datetime) -> list[Effect]:
        end = overdue(held, now)
        return [] if end is None else self._stop(held, end, held.stop_grace_s, now)

    def _recover(self, held: Held, fact: Recovered, now: datetime) -> list[Effect]:
        handle, condition = fact.found.get(held.key, ("", "gone"))
        match held.phase:
            case Phase.ACCEPTED | Phase.PULLING | Phase.STAGING:
                fresh = held.model_copy(update={"phase": Phase.ACCEPTED, "since": now})
                return [self._save(fresh), Prepare(held.order, again=True)]
            case Phase.STARTING | Phase.WARMUP | Phase.RUNNING if condition == "gone":
                return self._lost(held, now)
            case Phase.STARTING if condition == "created" and held.stop is not None:
                return self._finish(held, held.stop, now)
            case Phase.STARTING if condition == "created":
                return [Start(held.model_copy(update={"handle": handle}), again=True)]
            case Phase.STARTING:
                return [*self._started(held, now), Follow(held)]
            case Phase.WARMUP | Phase.RUNNING:
                return [Follow(held), *_attend(held), *_stop_late(held)]
            case Phase.FINISHING:
                return [Collect(held)]
            case Phase.FINISHED | Phase.FORGETTING:
                is_over = held.phase is Phase.FORGETTING or (held.is_delivered and not held.is_cleared)
                return [Clear(held)] if is_over else []

    def _lost(self, held: Held, now: datetime) -> list[Effect]:
        failure = Failure(
            reason=EndReason.AGENT_LOST_CONTAINER, message="The program is gone, and nobody knows how it ended."
        )
        held = held.model_copy(update={"phase": Phase.RUNNING})
        return self._exited(held, Outcome(None, failure=failure), now)

    # --- helpers ---

    def _of(self, runtime: str) -> Iterable[Held]:
        return [held for held in self.held.values() if held.order.spec.runtime == runtime]

    def _save(self, held: Held) -> Save:
        self.held[held.key] = held
        return Save(held)

    def _clear(self, held: Held) -> list[Effect]:
        return [self._save(held), Clear(held)]

    def _drop(self, held: Held) -> list[Effect]:
        del self.held[held.key]
        self.dropped[held.key] = None
        while len(self.dropped) > DROPPED_KEPT:
            del self.dropped[next(iter(self.dropped))]
        return [Drop(held.key)]


def _stop_late(held: Held) -> list[Effect]:
    """Stop what was to end before it was seen to run. What is fenced has had its time: the lease may be over."""
    return [Stop(held, 0.0 if held.is_fenced else held.stop_grace_s)] if held.stop else []


def _attend(held: Held) -> list[Effect]:
    return [Attend(held)] if held.order.service is not None and held.stop is None else []


def _command(held: Held) -> str:
    command = held.order.spec.command
    text = command if isinstance(command, str) else " ".join(command or ("of the image",))
    return text[:_COMMAND_CHARS_MAX]
