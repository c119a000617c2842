"""Carries out what the core decides: records it, believes it, acts on it, in that order. Holds no rules of its own."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from services.scheduler.adapters import metrics
from services.scheduler.adapters.lease import DeposedError, Lease
from services.scheduler.core.desired import desired_state
from services.scheduler.core.facts import Fact, Input, LookedUp, Recorded, read_fact
from services.scheduler.core.fleet.state import State
from services.scheduler.core.fleet_facts import FleetFact, NodeRecorded, Wish
from services.scheduler.core.limits import Now
from services.scheduler.core.machine import Batch, Beat, Decision, decided_for, handle
from services.scheduler.core.membership import NodeDecision
from services.scheduler.core.quarantine import PoisonError, Quarantine, taking_in
from services.scheduler.fleet_log import FleetLog
from services.scheduler.questions import Questions
from services.scheduler.recovery import Standby, read_facts
from services.scheduler.settings import SchedulerSettings
from shared import observe
from shared.bus import Bus, Handle, Received, Record, Stored, job_filter
from shared.channels import FLEET, HEARTBEAT, JOB_CHANGED, JOBS, WAKE
from shared.clock import monotonic, utc_now
from shared.deadletters import DeadLetters
from shared.errors import Conflict, NotFound, Unavailable, WherryError
from shared.events import JobChanged
from shared.fleet import DesiredState, Heartbeat, Wake
from shared.model import Message

_TICK_S = 1.0
#: Nodes that a new leader asks for a heartbeat at once; those of a large fleet come as they would.
_CALLED_MAX = 200
_CANCEL_AGAIN_S = 2.0
_HEARTBEATS_AT_ONCE = 2048
_WAITING_MAX = 5000  # messages of the log taken from the broker and not yet decided about
_CONFLICTS_MAX = 10  # turns in a row; then the log is read anew
_log = observe.logger("scheduler")


class Scheduler:
    """One scheduler: waits until it leads, leads until it does not, and begins again."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, holder: str) -> None:
        """Use *holder*, a name that no other scheduler has at the same time, to lead under."""
        self._bus = bus
        self._settings = settings
        self._quarantine = Quarantine()
        self._lease = Lease(bus, holder, settings.scheduler_leader_lease_s, settings.scheduler_leader_renew_s)

    async def run(self) -> None:
        """Run until cancelled; a cancelled leader keeps a snapshot and hands the lease back."""
        metrics.LEADER.set(0)
        while True:
            term = _Term(self._bus, self._settings, self._lease, self._quarantine)
            try:
                await self._wait_and_lead(term)
            except asyncio.CancelledError:
                await term.save()
                await self._lease.release()
                raise
            finally:
                metrics.LEADER.set(0)
            await asyncio.sleep(self._settings.scheduler_leader_renew_s)

    async def _wait_and_lead(self, term: "_Term") -> None:
        crew = _Crew()
        crew.start(term.standby.follow(), "standby")
        crew.start(term.fleet_log.follow(), "fleet")
        crew.start(self._lead(term, crew), "term")
        try:
            await crew.until_one_ends()
        except PoisonError as poison:
            await self._set_aside(poison)
        except NotFound:
            raise  # the log itself is gone: nothing that a scheduler may mend
        except (DeposedError, WherryError) as ended:
            metrics.DEPOSED.inc()
            _log.warning("no_longer_leading", reason=str(ended))

    async def _set_aside(self, poison: PoisonError) -> None:
        """Take note of what has ended the term; what ends one again and again is kept as a dead letter and passed over.

        Nothing is passed over before its letter is on disk.
        """
        metrics.DEPOSED.inc()
        is_out = self._quarantine.blame(poison)
        _log.error("poison", set_aside=is_out, kind=poison.kind, key=poison.key, seq=poison.seq, exc_info=poison)
        try:
            await self._lease.release()
            if is_out and poison.kind != "node":
                stream = JOBS if poison.kind == "job" else FLEET
                if message := await self._bus.read(stream, poison.seq):
                    await DeadLetters(self._bus).keep(stream, [(message, poison.why)])
        except WherryError as problem:
            self._quarantine.release(poison.kind, poison.key)
            _log.warning("not_set_aside", key=poison.key, error=problem.message)
        else:
            metrics.SET_ASIDE.labels(poison.kind).inc(is_out)

    async def _lead(self, term: "_Term", crew: "_Crew") -> None:
        await term.standby.caught_up()  # whoever is further with the log leads before
        await term.fleet_log.caught_up()
        await self._lease.acquire()
        crew.start(self._lease.keep(), "lease")
        await term.run(crew)


class _Crew:
    """Tasks without an end of their own, which end together.

    Unlike a task group it repeats a cancel until it is heeded: before Python 3.12, `asyncio.wait_for`, which nats-py
    uses, loses a cancel that comes together with its result, and a deposed leader would wait for ever.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_ended = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run *work* beside the others."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(lambda _: self._one_ended.set())
        self._tasks.add(task)

    async def until_one_ends(self) -> None:
        """Wait until one has ended, end the others, and raise what ended the first."""
        try:
            await self._one_ended.wait()
            [first] = [task for task in self._tasks if task.done()][:1]
        finally:
            while running := {task for task in self._tasks if not task.done()}:
                for task in running:
                    task.cancel()
                await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)
        first.result()


@dataclass(slots=True)
class _Inbox:
    """What has arrived and was not looked at yet."""

    messages: list[Received[Any]] = field(default_factory=list)
    beats: list[tuple[Beat, asyncio.Future[DesiredState]]] = field(default_factory=list)
    tick: bool = False
    was_cut_off: bool = False
    some: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)


class _Term:
    """One time of leading: a state of its own, which ends with it."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, lease: Lease, quarantine: Quarantine) -> None:
        self.standby = Standby(bus, quarantine)
        self._bus = bus
        self._quarantine = quarantine
        self._settings = settings
        self._lease = lease
        self._state: State | None = None
        self._inbox = _Inbox()
        self.fleet_log = FleetLog(bus, self.standby.letters, self._inbox.some, quarantine)
        self._questions = Questions(self._inbox.some)
        self._replayed: list[Fact] = []  # from dead letters
        self._looked_up: tuple[LookedUp, ...] = ()  # what the turn before had asked the log for
        self._retry: list[Input] = []  # inputs of jobs that had moved on when their decision was to be recorded
        self._conflicts = 0
        self._position = 0  # everything up to here is decided, recorded and believed
        self._saved = (0, monotonic())  # the last snapshot: its position, and when it was written

    async def run(self, crew: _Crew) -> None:
        """Catch up with the log, then take turns; what goes on beside joins *crew*.

        Raises:
            DeposedError: somebody else leads.
        """
        with metrics.TAKEOVER.time():
            replayed = await self.standby.take_over()
            await self.fleet_log.reach_end()
            saved, carried = await self.standby.snapshots.newest()
        # The lease may have been lost where the log was not.
        self._lease.claim(max(replayed.epoch, self.fleet_log.epoch, carried.epoch))
        state = self._state = State(self._settings.limits(), _now())
        state.position = self._position = replayed.position
        self._saved = (self._position, monotonic())  # until all of it is believed there is nothing to save
        state.restore(carried)
        state.adopt(replayed.books)
        metrics.LEADER.set(1)
        metrics.EPOCH.set(self._lease.epoch)
        crew.start(self._read(self.standby.rest()), "read")
        crew.start(self._tick(), "tick")
        crew.start(self._save_regularly(), "save")
        again = await self._turn(state, Batch(facts=replayed.facts(), fleet=self.fleet_log.take()), [])
        # As old as it is: where no leader lives for long, each would read a longer log than the one before.
        saved = min(saved, replayed.position)  # one ahead of the log, whose data was set back, is worth nothing
        self._saved = (saved, monotonic() - max(0.0, utc_now().timestamp() - carried.at_s))
        serving = asyncio.create_task(self._open_doors(), name="serve")
        try:
            # nats-py's flush must not be cancelled: the PONG that then finds nobody ends its read loop.
            await asyncio.shield(serving)
            while True:
                again = await self._turn(state, *await self._take(wait=not again))
        finally:
            for door in await asyncio.shield(serving):
                await door.stop()
            self._questions.close()
            for _, answer in self._inbox.beats:
                answer.cancel()

    async def _open_doors(self) -> list[Handle]:
        doors = [
            await self._bus.serve(HEARTBEAT, self._hear, queue=None, concurrency=_HEARTBEATS_AT_ONCE),
            *await self._questions.serve(self._bus),
            await self.standby.letters.listen(self._replay),
        ]
        for node_id in tuple(self._state.nodes if self._state else ())[:_CALLED_MAX]:
            await self._bus.publish(WAKE, Wake(), node_id=node_id)
        return doors

    async def save(self) -> None:
        """Keep a snapshot of what is believed, if the log has moved on since the last."""
        if self._state is None or self._position == self._saved[0] or not self.standby.letters.are_kept:
            return
        self._saved = (self._position, monotonic())
        jobs = [(tracked.job, tracked.seq) for tracked in self._state.jobs.values()]
        jobs += [kept for job_id, kept in self._quarantine.passed.items() if job_id not in self._state.jobs]
        try:
            carried = self._state.carried(_now()).model_copy(update={"epoch": self._lease.epoch})
            items = {job_id: book.lines() for job_id, book in self._state.books.items()}
            await self.standby.snapshots.save(self._position, jobs, carried, items)
        except WherryError as problem:
            _log.warning("snapshot_failed", error=problem.message)

    # --- what arrives ----------------------------------------------------------------------------------------------

    async def _read(self, reader: AsyncIterator[list[Received[Any]]]) -> None:
        inbox = self._inbox
        async for messages in reader:
            inbox.messages += messages
            inbox.some.set()
            while len(inbox.messages) > _WAITING_MAX:
                inbox.room.clear()
                await inbox.room.wait()

    async def _replay(self, message: Received[Any]) -> str | None:
        """Take in a dead letter, as an admin wants, at its old place in the log: the usual fences hold."""
        if message.channel is not None and message.channel.stream == FLEET:
            return self.fleet_log.replay(message)
        self._quarantine.release("job", message.params.get("job_id", ""))
        facts, unreadable = read_facts([message], self._quarantine)
        self._replayed += facts
        self._inbox.some.set()
        return next((why for _, why in unreadable), None)

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._snapshot_due():
                await self.save()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._inbox.tick = True
            self._inbox.was_cut_off |= not self._bus.is_connected
            self._inbox.some.set()

    async def _hear(self, params: dict[str, str], heartbeat: Heartbeat) -> Message:
        self._lease.claim(heartbeat.epoch)
        if params["node_id"] in self._quarantine.nodes:
            raise WherryError("internal", "Heartbeats of this node end the scheduler's work: its log says why.")
        answer: asyncio.Future[DesiredState] = asyncio.get_running_loop().create_future()
        self._inbox.beats.append((Beat(params["node_id"], heartbeat), answer))
        self._inbox.some.set()
        try:
            return await answer
        except asyncio.CancelledError:
            raise Unavailable("This scheduler no longer leads.") from None

    async def _take(self, *, wait: bool) -> tuple[Batch, list[asyncio.Future[DesiredState]]]:
        inbox = self._inbox
        if wait and not self._retry:
            await inbox.some.wait()
        inbox.some.clear()
        facts, unreadable = read_facts(inbox.messages, self._quarantine)
        if unreadable:
            self.standby.letters.begin(JOBS, unreadable)
        fleet = self.fleet_log.take()
        self._check_epochs((*facts, *fleet))
        beats = inbox.beats
        batch = Batch(
            facts=(*self._retry, *self._replayed, *facts),
            beats=tuple(beat for beat, _ in beats),
            tick=inbox.tick,
            was_cut_off=inbox.was_cut_off,
            looked_up=self._looked_up,
            fleet=fleet,
        )
        self._retry, self._replayed, self._looked_up = [], [], ()
        inbox.messages, inbox.beats, inbox.tick, inbox.was_cut_off = [], [], False, False
        inbox.room.set()
        return batch, [answer for _, answer in beats]

    def _check_epochs(self, facts: tuple[Fact | FleetFact, ...]) -> None:
        """Stop leading where the log shows that a later leader works; leading again will be above its epoch."""
        highest = max((fact.epoch for fact in facts if isinstance(fact, Recorded | NodeRecorded)), default=0)
        if highest > self._lease.epoch:
            self._lease.claim(highest)
            raise DeposedError(f"epoch {highest} has written")

    # --- a turn ----------------------------------------------------------------------------------------------------

    async def _turn(self, state: State, batch: Batch, answers: list[asyncio.Future[DesiredState]]) -> bool:
        """Decide, record, believe, act. Return whether there is more to decide at once."""
        with metrics.TURNS.time():
            effects = handle(state, batch, _now())
            await self._record(state, effects.records, batch.facts)
            await self._record_nodes(state, effects.nodes, batch.fleet)
            for node_id in effects.wakes:
                await self._bus.publish(WAKE, Wake(), node_id=node_id)
            self._answer(state, batch.beats, answers)
            self._questions.answer(state, _now())
            self._looked_up = tuple(await asyncio.gather(*map(self._look_up, effects.lookups)))
            self._retry += effects.deferred
            for seq, why in effects.broken:
                await self._bury(seq, why)
        if not self._retry:
            self._position = state.position
        metrics.HEARTBEATS.inc(len(batch.beats))
        if batch.tick:
            metrics.show(state.counts(), len(state.line), state.fleet_size)
        if not effects.again:
            return False
        await asyncio.sleep(0)  # the lease, the reader and the heartbeats have their turn too
        return True

    async def _bury(self, seq: int, why: str) -> None:
        """Keep an input that nobody can decide about as a dead letter."""
        if message := await self._bus.read(JOBS, seq):
            metrics.SET_ASIDE.labels("input").inc()
            self.standby.letters.begin(JOBS, [(message, why)])

    def _answer(self, state: State, beats: tuple[Beat, ...], answers: list[asyncio.Future[DesiredState]]) -> None:
        now = _now()
        for beat, answer in zip(beats, answers, strict=True):
            if not answer.done():
                with taking_in("node", beat.node_id):
                    wanted = desired_state(state, beat.node_id, self._lease.epoch, now, beat.heartbeat.session)
                answer.set_result(wanted)

    async def _record(self, state: State, decisions: tuple[Decision, ...], facts: tuple[Fact, ...]) -> None:
        if not decisions:
            return
        outcomes = await self._store([self._to_record(one) for one in decisions])
        now = _now()
        conflicts: list[str] = []
        for decision, outcome in zip(decisions, outcomes, strict=True):
            if isinstance(outcome, Stored):
                with taking_in("job", decision.job.id, outcome.seq):
                    state.believe(decision.job, outcome.seq, now, decision.items)
                metrics.DECISIONS.labels(decision.name.value).inc()
            elif isinstance(outcome, Conflict):
                conflicts.append(decision.job.id)
            else:
                raise outcome
        self._conflicts = self._conflicts + 1 if conflicts else 0
        if self._conflicts > _CONFLICTS_MAX:
            raise DeposedError("the log keeps moving on without this scheduler")
        for job_id in conflicts:
            await self._reload(state, job_id, facts)

    async def _store(self, records: list[Record]) -> list[Stored | BaseException]:
        """Record all, in batches, each for itself: one that is refused does not hold up the others."""
        if len(records) > 1:
            return await asyncio.gather(*map(self._bus.record_grouped, records), return_exceptions=True)
        try:
            return [await self._bus.record(records[0])]
        except Conflict as conflict:
            return [conflict]

    def _to_record(self, decision: Decision) -> Record:
        job = decision.job
        params = {"owner": job.owner.id, "job_id": job.id, "event": decision.name.value}
        event = self._bus.event(
            JOB_CHANGED,
            JobChanged(job=job, epoch=self._lease.epoch, items=decision.items),
            subject=job.id,
            causedby=decision.cause,
            **params,
        )
        return Record(JOB_CHANGED, params, event, expect=(job_filter(job.id), decision.expect_seq))

    async def _reload(self, state: State, job_id: str, facts: tuple[Fact, ...]) -> None:
        """Believe what the log holds of a job after all, and decide again what this turn had decided about it."""
        metrics.CONFLICTS.inc()
        last = await self._bus.last(JOBS, job_filter(job_id))
        found = read_fact(last.subject, last.seq, last.event) if last is not None and last.event is not None else None
        _log.warning("conflict", job_id=job_id, seq=last.seq if last else 0)
        if isinstance(found, Recorded):
            if found.job.spec.map is not None:
                raise DeposedError("somebody else has written about items: they are read anew")
            if found.epoch > self._lease.epoch:
                self._lease.claim(found.epoch)
                raise DeposedError(f"epoch {found.epoch} has written")
            with taking_in("job", job_id, found.seq):
                state.assign(found.job, found.seq, _now())
        state.refused(job_id, last.seq if last else 0, _now())
        self._retry += [fact for fact in facts if isinstance(fact, Input) and decided_for(state, fact) == job_id]

    async def _record_nodes(
        self, state: State, decisions: tuple[NodeDecision, ...], facts: tuple[FleetFact, ...]
    ) -> None:
        if not decisions:
            return
        outcomes = await self._store([self.fleet_log.to_record(one, self._lease.epoch) for one in decisions])
        for decision, outcome in zip(decisions, outcomes, strict=True):
            node_id = decision.record.id
            if isinstance(outcome, Stored):
                with taking_in("fleet", str(outcome.seq), outcome.seq):
                    state.believe_node(decision.record, outcome.seq, _now())
                metrics.NODE_CHANGES.labels(decision.record.history[-1].what).inc()
                _log.info("node_changed", node_id=node_id, **_told(decision))
            elif isinstance(outcome, Conflict):
                await self._reload_node(state, node_id)
                self.fleet_log.put_back(one for one in facts if isinstance(one, Wish) and one.node_id == node_id)
            else:
                raise outcome

    async def _reload_node(self, state: State, node_id: str) -> None:
        """Believe what the log holds of a node after all."""
        metrics.CONFLICTS.inc()
        seq, found = await self.fleet_log.last(node_id)
        _log.warning("node_conflict", node_id=node_id, seq=seq)
        if found is not None:
            self._check_epochs((found,))
            state.believe_node(found.record, seq, _now())
        state.roster.refused(node_id, seq)

    async def _look_up(self, job_id: str) -> LookedUp:
        """Return what the log holds last of a job that is not active."""
        last = await self._bus.last(JOBS, job_filter(job_id))
        found = read_fact(last.subject, last.seq, last.event) if last is not None and last.event is not None else None
        return LookedUp(job_id, found.job if isinstance(found, Recorded) else None)

    def _snapshot_due(self) -> bool:
        position, when = self._saved
        new = self._position - position
        interval_s = self._settings.scheduler_snapshot_interval_s
        return new >= self._settings.scheduler_snapshot_events or (new > 0 and monotonic() - when >= interval_s)


def _told(decision: NodeDecision) -> dict[str, str]:
    last = decision.record.history[-1]
    return {"what": last.what, "by": last.by, "reason": last.reason}


def _now() -> Now:
    return Now(utc_now(), monotonic())
