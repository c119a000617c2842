"""The agent's loop: heartbeats in and out, facts to the machine, journal first, then acts."""

import asyncio
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prometheus_client import Counter, Gauge

from services.node_agent.adapters import host_psutil
from services.node_agent.adapters.gpu_nvml import NvmlGpus
from services.node_agent.adapters.journal import Journal, Kept, Outgoing, Write
from services.node_agent.adapters.processes import remove_tree
from services.node_agent.adapters.storage import Storage
from services.node_agent.core import machine as m
from services.node_agent.core.capacity import Share
from services.node_agent.core.container import Key
from services.node_agent.ports import Runtime, RuntimeFacts
from services.node_agent.settings import AgentSettings
from services.node_agent.shell.attempts import Attempts, Doing
from services.node_agent.shell.outbox import Outbox, event_of
from shared import observe
from shared.bus import Bus
from shared.channels import HEARTBEAT, OUTPUT, WAKE
from shared.clock import monotonic, utc_now
from shared.errors import WherryError
from shared.events import OutputBatch
from shared.fleet import Capacity, DesiredState, Gpu, Heartbeat, NodeInfo
from shared.ids import new_id
from shared.states import AttemptEventName

_TICK_S = 0.25
_WATCH_S = 5.0
_SWEEP_EVERY = 6  # watches
_HEARTBEAT_TIMEOUT_S = 5.0
_INTERVAL_MAX_S = 60.0
_EXIT_GRACE_S = 5.0
_log = observe.logger("agent")

ATTEMPTS = Gauge("wherry_agent_attempts", "Attempts in the journal.", ["phase"])
OUTBOX = Gauge("wherry_agent_outbox", "Reports that the log has not acknowledged.")
HEARTBEATS = Counter("wherry_agent_heartbeats_total", "Heartbeats sent.", ["outcome"])
ENDED = Counter("wherry_agent_attempts_ended_total", "Attempts that ended here.", ["state"])


@dataclass(slots=True)
class _Watched:
    """What is known of a runtime. `facts` is None while it does not answer; `problem` says why."""

    runtime: Runtime
    facts: RuntimeFacts | None = None
    problem: str = ""


class SteadyClock:
    """Wall-clock time that never jumps while the agent runs: a limit of an hour is an hour."""

    def __init__(self) -> None:
        self._start, self._since = utc_now(), monotonic()

    def now(self) -> datetime:
        """Return the time in UTC."""
        return self._start + timedelta(seconds=monotonic() - self._since)


class Agent:
    """One node. `run` returns only by being cancelled.

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
        self._gpus = gpus
        self._watched = {runtime.name: _Watched(runtime) for runtime in runtimes}
        self._clock = SteadyClock()
        self._facts: asyncio.Queue[m.Fact] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._session, self._heartbeats = new_id("s"), 0
        self._host = host_psutil.machine(settings.folder)
        self._lease_until = 0.0
        kept = journal.load()
        self._machine = m.Machine({held.key: held for held in kept.held}, kept.epoch)
        self._outbox = Outbox(bus, settings.node, journal, self._delivered)
        self._attempts = Attempts(
            Doing(
                runtimes={name: watched.runtime for name, watched in self._watched.items()},
                storage=storage,
                folder=settings.folder / "attempts",
                post=self._facts.put_nowait,
                publish=self._publish,
                log_bytes_max=settings.log_bytes_max,
            )
        )
        self._resume(kept)

    @property
    def has_lease(self) -> bool:
        """Return whether the scheduler's word from the last heartbeat still holds."""
        return monotonic() < self._lease_until

    async def run(self) -> None:
        """Work until cancelled. Containers run on, or are stopped where the setting says so."""
        woken = await self._bus.listen(WAKE, lambda _: self._wake.set(), node_id=self._settings.node)
        try:
            await self._watch_once(sweep=True)
            async with asyncio.TaskGroup() as tasks:
                for work in (self._turns(), self._heartbeat_loop(), self._ticks(), self._watch()):
                    tasks.create_task(work)
        finally:
            await woken.stop()
            await self._shut_down()

    # --- turns: decide, write down, act ---

    async def _turns(self) -> None:
        while True:
            facts = [await self._facts.get()]
            while not self._facts.empty():
                facts.append(self._facts.get_nowait())
            now = self._clock.now()
            effects = [effect for fact in facts for effect in self._machine.handle(fact, now)]
            outgoing = {
                id(effect): event_of(self._bus, self._settings.node, effect)
                for effect in effects
                if isinstance(effect, m.Report)
            }
            writes: list[Write] = []
            for effect in effects:
                if isinstance(effect, m.Save | m.Drop | m.SaveEpoch):
                    writes.append(effect)
                elif isinstance(effect, m.Report):
                    writes.append(outgoing[id(effect)])
            await self._journal.write(writes)
            for effect in effects:
                self._act(effect, outgoing)
            self._count()

    def _act(self, effect: m.Effect, outgoing: Mapping[int, Outgoing]) -> None:
        match effect:
            case m.Report():
                self._outbox.add(outgoing[id(effect)])
                _log.info("attempt_" + effect.name.value, job_id=effect.key.job_id, attempt=effect.key.attempt)
                if effect.name is AttemptEventName.FINISHED:
                    ENDED.labels(str(getattr(effect.data, "state", ""))).inc()
            case m.Drop(key):
                self._outbox.drop(key)
            case m.Save() | m.SaveEpoch():
                pass
            case m.HeartbeatNow():
                self._wake.set()
            case _:
                self._attempts.act(effect)

    def _resume(self, kept: Kept) -> None:
        for outgoing in kept.outbox:
            self._outbox.add(outgoing)
        unsent = {outgoing.key for outgoing in kept.outbox}
        for held in kept.held:
            if held.phase is m.Phase.FINISHED and not held.is_delivered and held.key not in unsent:
                self._facts.put_nowait(m.Delivered(held.key))  # acknowledged just before the last agent ended
        known = {self._attempts.folder(held.key) for held in kept.held}
        for folder in (self._settings.folder / "attempts").glob("*"):
            if folder not in known:
                remove_tree(folder)

    def _delivered(self, outgoing: Outgoing) -> None:
        if outgoing.name is AttemptEventName.FINISHED:
            self._facts.put_nowait(m.Delivered(outgoing.key))

    async def _publish(self, key: Key, batch: OutputBatch) -> None:
        node = self._settings.node
        with suppress(WherryError):  # the whole log comes home later
            await self._bus.publish(OUTPUT, batch, node_id=node, job_id=key.job_id, attempt=str(key.attempt))

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._machine.held:
                self._facts.put_nowait(m.Tick())

    def _count(self) -> None:
        phases = [held.phase for held in self._machine.held.values()]
        for phase in m.Phase:
            ATTEMPTS.labels(phase.value).set(phases.count(phase))
        OUTBOX.set(len(self._outbox))

    # --- runtimes: do they answer, and what do they hold? ---

    async def _watch(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(_WATCH_S)
            turn += 1
            await self._watch_once(sweep=turn % _SWEEP_EVERY == 0)

    async def _watch_once(self, *, sweep: bool) -> None:
        for watched in self._watched.values():
            try:
                facts = await watched.runtime.describe()
                if watched.runtime.name not in self._machine.recovered or sweep:
                    await self._reconcile(watched.runtime)
            except Exception as error:  # noqa: BLE001 - whatever an engine does, the node lives on without it
                problem = error.message if isinstance(error, WherryError) else repr(error)
                if watched.facts is not None or watched.problem != problem:
                    _log.warning("runtime_away", runtime=watched.runtime.name, error=problem)
                    self._wake.set()
                watched.facts, watched.problem = None, problem
            else:
                if watched.facts is None:
                    _log.info("runtime_there", runtime=watched.runtime.name, found=facts.text)
                    self._wake.set()
                watched.facts, watched.problem = facts, ""

    async def _reconcile(self, runtime: Runtime) -> None:
        """Tell the machine once what a runtime holds; remove what is ours, unknown, and not just being made."""
        found = await runtime.found()
        if runtime.name not in self._machine.recovered:
            held: dict[Key, tuple[str, Literal["created", "started"]]] = {
                one.key: (one.handle, one.condition) for one in found if one.handle
            }
            self._facts.put_nowait(m.Recovered(runtime.name, held))
        oldest = utc_now() - timedelta(seconds=self._settings.stray_age_s)
        for key in {one.key for one in found if one.created_at < oldest} - set(self._machine.held):
            _log.warning("stray_removed", runtime=runtime.name, job_id=key.job_id, attempt=key.attempt)
            await runtime.clear(key)

    # --- heartbeats ---

    async def _heartbeat_loop(self) -> None:
        interval_s = 2.0
        while True:
            self._wake.clear()
            asked_at = monotonic()
            try:
                desired = await self._bus.ask(
                    HEARTBEAT,
                    await self._heartbeat(),
                    timeout_s=_HEARTBEAT_TIMEOUT_S,
                    retry_s=0,
                    node_id=self._settings.node,
                )
            except WherryError as error:
                HEARTBEATS.labels("failed").inc()
                _log.debug("heartbeat_failed", error=error.message)
            else:
                HEARTBEATS.labels("answered").inc()
                self._lease_until = asked_at + desired.lease_s
                interval_s = min(max(desired.interval_s, 0.1), _INTERVAL_MAX_S)
                self._take(desired)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), interval_s)

    def _take(self, desired: DesiredState) -> None:
        if desired.epoch < self._machine.epoch:
            # One beat of it is a scheduler that was deposed. For good, it is a log that was wiped or restored.
            _log.warning("older_scheduler_ignored", epoch=desired.epoch, highest_seen=self._machine.epoch)
        if desired.assignments or desired.epoch != self._machine.epoch:
            self._facts.put_nowait(m.Desired(desired))
        if desired.more:
            self._wake.set()

    async def _heartbeat(self) -> Heartbeat:
        self._heartbeats += 1
        gpus = await asyncio.to_thread(self._gpus.read)
        return Heartbeat(
            node=self._info(),
            session=self._session,
            boot_id=self._host.boot_id,
            seq=self._heartbeats,
            capacity=self._capacity(gpus),
            usage=host_psutil.usage(self._settings.folder),
            attempts=self._machine.attempts(),
            epoch=self._machine.epoch,
            at=utc_now(),
        )

    def _info(self) -> NodeInfo:
        there = {name: watched.facts for name, watched in self._watched.items() if watched.facts is not None}
        docker = self._watched.get("docker")
        arch = (docker and docker.facts and docker.facts.arch) or self._host.arch
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
            engine="; ".join(facts.text for facts in there.values())
            if docker is None or docker.facts
            else docker.problem,
        )

    def _capacity(self, gpus: tuple[Gpu, ...]) -> Capacity:
        facts = [watched.facts for watched in self._watched.values() if watched.facts is not None]
        return offered(self._host, facts, self._settings.share, gpus)

    # --- the end ---

    async def _shut_down(self) -> None:
        await self._attempts.close()
        if self._settings.stop_jobs_on_exit:
            await asyncio.gather(*(self._stop_job(held) for held in self._machine.held.values()))
        await self._outbox.close()
        for watched in self._watched.values():
            await watched.runtime.close()
        self._gpus.close()

    async def _stop_job(self, held: m.Held) -> None:
        """End a program and remove it, results included: the stack goes down with its data kept elsewhere."""
        watched = self._watched.get(held.order.spec.runtime)
        if watched is None:
            return
        runtime, give_up_at = watched.runtime, monotonic() + _EXIT_GRACE_S
        with suppress(WherryError):
            if held.phase in (m.Phase.STARTING, m.Phase.RUNNING):
                await runtime.kill(held.key, held.handle, "SIGTERM")
                while await runtime.outcome(held.key, held.handle) is None and monotonic() < give_up_at:  # noqa: ASYNC110 - the followers are gone
                    await asyncio.sleep(0.05)
        with suppress(WherryError):
            await runtime.clear(held.key)


def offered(
    host: host_psutil.Machine, runtimes: Iterable[RuntimeFacts], share: Share, gpus: tuple[Gpu, ...]
) -> Capacity:
    """Return what a node offers: its share of the smaller of the machine and what its runtimes can use."""
    facts = list(runtimes)
    cpus = min([host.cpus, *(one.cpus for one in facts if one.cpus is not None)])
    memory = min([host.memory, *(one.memory for one in facts if one.memory is not None)])
    return Capacity(
        cpus=cpus if share.cpus is None else min(share.cpus, cpus),
        memory=memory if share.memory is None else min(share.memory, memory),
        disk=host.disk if share.disk is None else min(share.disk, host.disk),
        gpus=gpus if share.gpus is None else gpus[: share.gpus],
    )


def _version() -> str:
    try:
        return version("wherry")
    except PackageNotFoundError:
        return f"source, Python {platform.python_version()}"
