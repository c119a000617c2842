"""The agent's loop: heartbeats in and out, facts to the machine, journal first, then acts."""

import asyncio
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge

from services.node_agent.adapters import host_psutil
from services.node_agent.adapters.address import address_towards
from services.node_agent.adapters.gpu_nvml import NvmlGpus, PatientGpus
from services.node_agent.adapters.inputs_book import InputsBook
from services.node_agent.adapters.journal import Journal, Kept, Outgoing, Write
from services.node_agent.adapters.lease_note import LeaseNote
from services.node_agent.adapters.processes import remove_tree
from services.node_agent.adapters.storage import Storage
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core import machine as m
from services.node_agent.core import shelf
from services.node_agent.core.attempt import STARTED, Held, Phase
from services.node_agent.core.capacity import Share
from services.node_agent.core.container import Key
from services.node_agent.core.problems import problem
from services.node_agent.ports import Runtime, RuntimeFacts
from services.node_agent.settings import AgentSettings
from services.node_agent.shell.attempts import Attempts, Doing
from services.node_agent.shell.disk import DiskWatch
from services.node_agent.shell.inputs import Inputs
from services.node_agent.shell.live import Live
from services.node_agent.shell.outbox import Outbox, event_of, items_event
from services.node_agent.shell.prefetch import Prefetches
from services.node_agent.shell.serving import Serving
from services.node_agent.shell.watch import Watch
from services.node_agent.shell.workers import WorkerNeeds, Workers
from shared import observe
from shared.bus import Bus
from shared.channels import HEARTBEAT, OUTPUT, SNAPSHOT_WANTED, WAKE, Service
from shared.clock import boottime, monotonic, utc_now
from shared.errors import Unavailable, WherryError
from shared.events import OutputBatch
from shared.fleet import PROTOCOL, Capacity, DesiredState, Gpu, Heartbeat, NodeInfo, Usage
from shared.ids import new_id
from shared.states import AttemptEventName

_TICK_S = 0.25
_FIRST_LOOK_S = 5.0  # for the runtimes to answer, before the first heartbeat says that they do not
_FIRST_CONNECTION_S = 10.0  # for which output waits; without one by then it is not seen live
_HEARTBEAT_TIMEOUT_S = 5.0
_INTERVAL_MAX_S = 60.0
_RETRY_S = 2.0  # after a heartbeat that was not answered, or a tenth of the lease where that is longer
_EXIT_GRACE_S = 5.0
#: Heartbeats in a row that say "leaving, and empty" before the agent ends: something may have been placed meanwhile.
_EMPTY_BEATS = 2
#: What the agent exits with when another one has this node's identity: it must not come back by itself.
EXIT_EVICTED = 78
_log = observe.logger("agent")

ATTEMPTS = Gauge("wherry_agent_attempts", "Attempts in the journal.", ["phase"])
OUTBOX = Gauge("wherry_agent_outbox", "Reports that the log has not acknowledged.")
HEARTBEATS = Counter("wherry_agent_heartbeats_total", "Heartbeats sent.", ["outcome"])
ENDED = Counter("wherry_agent_attempts_ended_total", "Attempts that ended here.", ["state"])


class SteadyClock:
    """Wall-clock time that never jumps while the agent runs: a limit of an hour is an hour."""

    def __init__(self) -> None:
        self._start, self._since = utc_now(), monotonic()

    def now(self) -> datetime:
        """Return the time in UTC."""
        return self._start + timedelta(seconds=monotonic() - self._since)


class Agent:
    """One node, with or without a connection: what it holds goes on, and is told when there is one.

    Args:
        settings: of this agent.
        bus: the control connection.
        storage: blobs, on a connection of its own.
        journal: opened by the caller.
        runtimes: what is offered.
        gpus: the driver.
    """

    def __init__(
        self,
        settings: AgentSettings,
        bus: Bus,
        storage: Storage,
        journal: Journal,
        runtimes: Iterable[Runtime],
        gpus: NvmlGpus,
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._journal = journal
        self._gpus = PatientGpus(gpus)
        self._clock = SteadyClock()
        self._facts: asyncio.Queue[f.Fact] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._is_leaving, self._was_online = False, False
        self._empty_beats = 0
        self._connected_by = monotonic() + _FIRST_CONNECTION_S
        self._refused = ""
        self._address = ""
        self._problem = ""
        self._session, self._heartbeats = new_id("s"), 0
        self._host = host_psutil.machine(settings.folder)
        self._lease_note = LeaseNote(settings.folder / "lease.json", self._host.boot_id)
        kept = journal.load()
        self._machine = self._machine_of(kept)
        self._watch = Watch(
            runtimes, settings.stray_age_s, lambda: set(self._machine.held), self._facts.put_nowait, self._wake.set
        )
        self._disk = DiskWatch(
            self._watch.runtimes, self._machine.held.values, self._facts.put_nowait, settings.disk_interval_s
        )
        self._inputs = Inputs(
            storage,
            self._watch.runtimes,
            InputsBook(settings.folder / "inputs.sqlite", self._host.boot_id),
            settings.folder / "inputs",
            shelf.disk_for_inputs(self._host.disk, settings.inputs_disk),
        )
        self._live = Live(
            bus, storage, self._watch.runtimes, self._machine.held.get, settings.folder / "live", settings.node
        )
        self._prefetches = Prefetches(self._inputs, self._watch.runtimes, self._wake.set)
        self._outbox = Outbox(bus, settings.node, journal, self._delivered)
        connect = partial(Bus.connect, settings, Service.NODE_AGENT, peer=settings.node, purpose="serve", wait=False)
        self._serving = Serving(
            connect, settings.node, self._watch.runtimes, self._facts.put_nowait, settings.serve_bytes_max
        )
        self._workers = self._workers_of(storage, kept)
        self._attempts = self._attempts_on(storage)
        self._resume(kept)

    def _machine_of(self, kept: Kept) -> m.Machine:
        return m.Machine(
            {held.key: held for held in kept.held},
            kept.epoch,
            boot_id=self._host.boot_id,
            lease=self._lease_note.read(),
            dropped=dict.fromkeys(kept.dropped),
        )

    def _workers_of(self, storage: Storage, kept: Kept) -> Workers:
        needs = WorkerNeeds(
            runtimes=self._watch.runtimes,
            storage=storage,
            journal=self._journal,
            report=lambda key, ends: items_event(self._bus, self._settings.node, key, ends),
            send=self._outbox.add,
            post=self._facts.put_nowait,
            folder=lambda key: self._attempts.folder(key),  # noqa: PLW0108 - there are none yet
        )
        reported = {one.key for one in kept.outbox if one.name is AttemptEventName.ITEMS}
        return Workers(needs, kept.items, reported)

    def _attempts_on(self, storage: Storage) -> Attempts:
        settings = self._settings
        return Attempts(
            Doing(
                runtimes=self._watch.runtimes,
                storage=storage,
                folder=settings.folder / "attempts",
                post=self._facts.put_nowait,
                publish=self._publish,
                log_bytes_max=settings.log_bytes_max,
                inputs=self._inputs,
                log_rate=settings.log_rate,
                keep=self._keep_output,
                gpus=lambda: self._gpus.last,
                outputs_bytes_max=settings.outputs_bytes_max,
                drain=self._serving.drain,
                workers=self._workers,
            )
        )

    async def run(self) -> int:
        """Work until cancelled, or return the exit code once the node has left or another has its identity.

        Containers run on, or are stopped where the setting says so.
        """
        self._facts.put_nowait(f.Tick(boottime()))  # a lease that ran out meanwhile counts before anything is started
        try:
            async with asyncio.TaskGroup() as tasks:
                works = (
                    self._turns(), self._ticks(), self._watch.run(), self._disk.run(), self._inputs.run(),
                    self._listen(), self._heartbeat_loop(), self._serving.run(),
                )  # fmt: skip
                running = [tasks.create_task(work) for work in works]
                code = await self._ended
                for task in running:
                    task.cancel()
            return code
        finally:
            await self._shut_down()

    def leave(self) -> None:
        """Ask for nothing new, and end once nothing is left here."""
        _log.info("node_leaving", attempts=len(self._machine.held))
        self._is_leaving = True
        self._wake.set()

    # --- turns: decide, write down, act ---

    async def _turns(self) -> None:
        while True:
            facts = [await self._facts.get()]
            while not self._facts.empty():
                facts.append(self._facts.get_nowait())
            if self._machine.must_watch_lease:
                # The agent may have stood still since these came: what must not run twice is not started by them then.
                facts.insert(0, f.Tick(boottime()))
            now = self._clock.now()
            effects = [effect for fact in facts for effect in self._machine.handle(fact, now)]
            outgoing = {
                id(effect): event_of(self._bus, self._settings.node, effect)
                for effect in effects
                if isinstance(effect, e.Report)
            }
            writes: list[Write] = []
            for effect in effects:
                if isinstance(effect, e.Save | e.Drop | e.SaveEpoch):
                    writes.append(effect)
                elif isinstance(effect, e.Report):
                    writes.append(outgoing[id(effect)])
            await self._journal.write(writes)
            for effect in effects:
                self._act(effect, outgoing)
            self._count()

    def _act(self, effect: e.Effect, outgoing: Mapping[int, Outgoing]) -> None:
        match effect:
            case e.Report():
                self._outbox.add(outgoing[id(effect)])
                _log.info("attempt_" + effect.name.value, job_id=effect.key.job_id, attempt=effect.key.attempt)
                if effect.name is AttemptEventName.FINISHED:
                    ENDED.labels(str(getattr(effect.data, "state", ""))).inc()
            case e.Drop(key):
                self._outbox.drop(key)
            case e.NoteLease(lease):
                self._lease_note.write(lease)
            case e.Save() | e.SaveEpoch():
                pass
            case e.Attend(held):
                self._serving.attend(held)
            case e.Collect(held) | e.Clear(held):
                self._serving.leave(held.key)
                self._attempts.act(effect)
            case e.HeartbeatNow():
                self._wake.set()
            case _:
                self._attempts.act(effect)

    def _resume(self, kept: Kept) -> None:
        for outgoing in kept.outbox:
            self._outbox.add(outgoing)
        unsent = {outgoing.key for outgoing in kept.outbox}
        for held in kept.held:
            if held.phase is Phase.FINISHED and not held.is_delivered and held.key not in unsent:
                self._facts.put_nowait(f.Delivered(held.key))  # acknowledged just before the last agent ended
        known = {self._attempts.folder(held.key) for held in kept.held}
        for folder in (self._settings.folder / "attempts").glob("*"):
            if folder not in known:
                remove_tree(folder)

    def _delivered(self, outgoing: Outgoing) -> None:
        self._workers.delivered(outgoing)
        if outgoing.name is AttemptEventName.FINISHED:
            self._facts.put_nowait(f.Delivered(outgoing.key))

    async def _publish(self, key: Key, batch: OutputBatch) -> None:
        node = self._settings.node
        with suppress(WherryError):  # the whole log comes home later
            if not self._was_online:  # after a first connection the bus itself keeps what does not get through
                await self._bus.until_online(max(0.0, self._connected_by - monotonic()))
            await self._bus.publish(OUTPUT, batch, node_id=node, job_id=key.job_id, attempt=str(key.attempt))

    async def _keep_output(self, key: Key, batch: OutputBatch) -> None:
        params = {"node_id": self._settings.node, "job_id": key.job_id, "attempt": str(key.attempt)}
        await self._bus.put(OUTPUT.subject(**params), batch.to_bytes())

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._machine.held:
                self._facts.put_nowait(f.Tick(boottime()))

    def _count(self) -> None:
        phases = [held.phase for held in self._machine.held.values()]
        for phase in Phase:
            ATTEMPTS.labels(phase.value).set(phases.count(phase))
        OUTBOX.set(len(self._outbox))

    # --- heartbeats ---

    async def _listen(self) -> None:
        """Hear wake-ups, from the first connection on."""
        while True:
            try:
                await self._bus.until_online()
                self._was_online = True
                await self._bus.listen(WAKE, lambda _: self._wake.set(), node_id=self._settings.node)
                await self._bus.listen(SNAPSHOT_WANTED, self._live.hear, node_id=self._settings.node)
            except Unavailable as error:
                if self._bus.closed.is_set():
                    raise
                _log.warning("not_listening", error=error.message)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _heartbeat_loop(self) -> None:
        await self._watch.until_asked(_FIRST_LOOK_S)
        interval_s = pause_s = _RETRY_S
        while True:
            self._wake.clear()
            beat, asked_at = await self._heartbeat(), boottime()
            try:
                desired = await self._bus.ask(
                    HEARTBEAT, beat, timeout_s=_HEARTBEAT_TIMEOUT_S, retry_s=0, node_id=self._settings.node
                )
            except WherryError as error:
                HEARTBEATS.labels("failed").inc()
                _log.debug("heartbeat_failed", error=error.message)
                pause_s = min(interval_s, max(_RETRY_S, self._lease_s / 10))
            else:
                HEARTBEATS.labels("answered").inc()
                pause_s = interval_s = min(max(desired.interval_s, 0.1), _INTERVAL_MAX_S)
                self._take(beat, desired, asked_at)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    @property
    def _lease_s(self) -> float:
        return self._machine.lease.length_s if self._machine.lease else 0.0

    def _take(self, beat: Heartbeat, desired: DesiredState, asked_at: float) -> None:
        if desired.evicted:
            _log.critical("evicted", node_id=self._settings.node, why="another agent has this node's identity now")
            self._end(EXIT_EVICTED)
            return
        if desired.refused != self._refused:
            self._refused = desired.refused
            _log.warning("refused" if desired.refused else "taken_again", why=desired.refused)
        if desired.epoch < self._machine.epoch and self._machine.older is None:
            _log.warning("older_scheduler_ignored", epoch=desired.epoch, highest_seen=self._machine.epoch)
        # Also without assignments: it is what renews the lease.
        self._facts.put_nowait(f.Desired(desired, asked_at))
        if desired.epoch >= self._machine.epoch:
            self._prefetches.want(desired.prefetches)
            self._workers.want(desired.assignments)
        if desired.more:
            self._wake.set()
        is_empty = not (beat.attempts or self._machine.held or desired.assignments or desired.more)
        self._empty_beats = self._empty_beats + 1 if beat.leaving and is_empty else 0
        if self._empty_beats >= _EMPTY_BEATS:
            _log.info("node_left", node_id=self._settings.node)
            self._end(0)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    async def _heartbeat(self) -> Heartbeat:
        self._heartbeats += 1
        if not (self._settings.address or self._address):
            self._address = await asyncio.to_thread(address_towards, self._settings.nats_url)
        gpus = await self._gpus.read()
        return Heartbeat(
            node=self._info(),
            session=self._session,
            boot_id=self._host.boot_id,
            seq=self._heartbeats,
            capacity=self._capacity(gpus),
            usage=self._usage(),
            attempts=tuple(self._workers.counted(self._serving.counted(one)) for one in self._machine.attempts()),
            images=self._watch.images,
            inputs=self._inputs.held,
            prefetched=self._prefetches.ended,
            epoch=self._machine.epoch,
            protocol=PROTOCOL,
            leaving=self._is_leaving,
            problem=self._problem_now(),
            at=utc_now(),
        )

    def _usage(self) -> Usage:
        """Return what is in use. What is set aside for inputs is not free for attempts: see `shelf`."""
        usage = host_psutil.usage(self._settings.folder)
        return usage.model_copy(update={"disk_free": max(1, usage.disk_free - self._inputs.unused)})

    def _problem_now(self) -> str:
        machine, now = self._machine, boottime()
        found = problem(
            machine.held.values(), self._watch.problems, machine.older, machine.epoch, now, self._gpus.problem
        )
        if found != self._problem:
            self._problem = found
            (_log.error if found else _log.info)("node_problem" if found else "node_well", problem=found)
        return found

    def _info(self) -> NodeInfo:
        there, problems = self._watch.facts, self._watch.problems
        docker = there.get("docker")
        arch = (docker and docker.arch) or self._host.arch
        settings = self._settings
        return NodeInfo(
            id=settings.node,
            name=settings.name,
            cluster=settings.cluster,
            tags=settings.tag_list,
            arch=arch if arch in ("amd64", "arm64") else self._host.arch,
            os=self._host.os,
            agent_version=_version(),
            runtimes=tuple(there),
            api=self._watch.with_doors,
            engine_id=docker.engine_id if docker else "",
            address=settings.address or self._address,
            host_network=settings.host_network and docker is not None,
            engine=problems.get("docker") or "; ".join(facts.text for facts in there.values()),
        )

    def _capacity(self, gpus: tuple[Gpu, ...]) -> Capacity:
        return offered(self._host, self._watch.facts.values(), self._settings.share, gpus, self._inputs.limit)

    # --- the end ---

    async def _shut_down(self) -> None:
        await self._serving.close()
        await self._live.close()
        await self._attempts.close()
        await self._prefetches.close()
        await self._inputs.close()
        is_evicted = self._ended.done() and not self._ended.cancelled() and self._ended.result() == EXIT_EVICTED
        ended = [
            held
            for held in self._machine.held.values()
            # What an evicted agent has may be the other one's by now; but nobody grants a lease for it here any more.
            if (held.order.spec.is_fenced if is_evicted else self._settings.stop_jobs_on_exit)
        ]
        await asyncio.gather(*map(self._stop_job, ended))
        await self._outbox.close()
        await self._watch.close()
        self._gpus.close()

    async def _stop_job(self, held: Held) -> None:
        """End a program and remove it, results included: the stack goes down with its data kept elsewhere."""
        runtime, give_up_at = self._watch.runtimes.get(held.order.spec.runtime), monotonic() + _EXIT_GRACE_S
        if runtime is None:
            return
        with suppress(WherryError):
            if held.phase in (Phase.STARTING, *STARTED):
                await runtime.kill(held.key, held.handle, "SIGTERM")
                while await runtime.outcome(held.key, held.handle) is None and monotonic() < give_up_at:  # noqa: ASYNC110 - the followers are gone
                    await asyncio.sleep(0.05)
        with suppress(WherryError):
            await runtime.clear(held.key)


def offered(
    host: host_psutil.Machine, runtimes: Iterable[RuntimeFacts], share: Share, gpus: tuple[Gpu, ...], inputs: int = 0
) -> Capacity:
    """Return what a node offers: its share of the smaller of the machine and what its runtimes can use.

    Disk is less by the bytes that are for *inputs*.
    """
    facts = list(runtimes)
    cpus = min([host.cpus, *(one.cpus for one in facts if one.cpus is not None)])
    memory = min([host.memory, *(one.memory for one in facts if one.memory is not None)])
    return Capacity(
        cpus=cpus if share.cpus is None else min(share.cpus, cpus),
        memory=memory if share.memory is None else min(share.memory, memory),
        disk=host.disk - inputs if share.disk is None else min(share.disk, host.disk - inputs),
        gpus=gpus if share.gpus is None else gpus[: share.gpus],
    )


def _version() -> str:
    try:
        return version("wherry")
    except PackageNotFoundError:
        return f"source, Python {platform.python_version()}"
