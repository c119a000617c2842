"""Carrying out effects on attempts: each as a task, whose findings go back as facts."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from services.node_agent.adapters.address import check_ports
from services.node_agent.adapters.processes import remove_tree
from services.node_agent.adapters.storage import Storage
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core.attempt import Held
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome, failure_from
from services.node_agent.core.shelf import Given
from services.node_agent.core.use import GpuUse, Use, points
from services.node_agent.ports import Image, Runtime
from services.node_agent.shell.api import Api
from services.node_agent.shell.collect import collect, until_done
from services.node_agent.shell.inputs import Inputs
from services.node_agent.shell.output import OutputPump, final_batches, series_in
from services.node_agent.shell.workers import Worker, Workers
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.events import OutputBatch, Progress
from shared.fleet import Order
from shared.job import Failure
from shared.states import EndReason

Post = Callable[[f.Fact], None]
PublishOutput = Callable[[Key, OutputBatch], Coroutine[Any, Any, None]]

_LOOK_S = 10.0  # how often a silent program is looked at
#: For more of its output, once it has ended: an engine that is at its limit is slow, one that hangs is rare.
_LINGER_S = 15.0
#: The end of a log shows a little before the engine knows the exit code.
_SETTLE_S = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.2, 0.5)
_REFUSALS_MAX = 5
_UNKILLABLE_S = 60.0
#: Between two tries to bring results home: storage may be away for hours.
_COLLECT_PAUSE_MAX_S = 60.0
#: For a start that an agent before this one asked for to reach the engine.
_DOUBT_S = 1.0
_PULL_TELL_S = 1.0
#: Before the first looks at what a program uses, and between all others.
_MEASURE_S = (0.3, 0.7, 1.0, 2.0, 5.0)
#: Between a pull that failed and the next try, as long as the time for pulling lasts.
_PULL_PAUSES_S = (5.0, 20.0, 60.0)
_log = observe.logger("attempts")


@dataclass(frozen=True, slots=True)
class Doing:
    """What the acts need.

    Attributes:
        runtimes: by name; what is not there is not offered.
        storage: where results go.
        folder: gets a folder per attempt.
        post: takes facts.
        publish: sends output, or loses it.
        log_bytes_max: of an attempt's output.
        inputs: those of all attempts.
        log_rate: bytes of output that are published in a second, of all attempts together; None: no limit.
        workers: those of map jobs.
        keep: publishes what must not be lost; raises `Unavailable` where nobody has taken it.
        gpus: what was last seen of the GPUs.
        outputs_bytes_max: of what an attempt leaves, kept; None: as much as the disk that it was promised.
        drain: lets a replica answer what it has begun; says how much of the grace is left.
    """

    runtimes: Mapping[str, Runtime]
    storage: Storage
    folder: Path
    post: Post
    publish: PublishOutput
    log_bytes_max: int
    inputs: Inputs
    log_rate: int | None = None
    keep: PublishOutput | None = None
    workers: Workers | None = None
    gpus: Callable[[], GpuUse] = GpuUse
    outputs_bytes_max: int | None = None
    drain: Callable[[Key, float], Awaitable[float]] | None = None


class Attempts:
    """Runs at most one task of each sort per attempt."""

    def __init__(self, doing: Doing) -> None:
        self._do = doing
        self._tasks: dict[tuple[Key, str], asyncio.Task[None]] = {}
        self._unwanted: set[Key] = set()  # not to be started any more
        self._pumps: set[OutputPump] = set()
        self._api = Api(doing.storage, doing.runtimes, self.folder)

    def act(self, effect: e.Effect) -> None:
        """Begin to carry out *effect*."""
        match effect:
            case e.Prepare(order, again):
                self._spawn(Key(order.job_id, order.attempt), "run", self._prepare(order, again=again))
            case e.Start(held, again):
                self._after(held.key, "run", self._start(held, again=again))
            case e.StartNoMore(key):
                self._unwanted.add(key)
            case e.Follow(held):
                self._spawn(held.key, "run", self._follow(held))
            case e.Stop(held, grace_s):
                self._cancel(held.key, "stop")  # one that leaves more time
                self._after(held.key, "stop", self._stop(held, grace_s))
            case e.Abort(key):
                self._cancel(key, "run")
            case e.Collect(held):
                self._after(held.key, "run", self._collect(held))
            case e.Clear(held):
                self._spawn(held.key, "clear", self._clear(held))
            case _:
                raise ValueError(f"not an act: {effect}")

    def folder(self, key: Key) -> Path:
        """Return where an attempt's files are."""
        return self._do.folder / f"{key.job_id}-{key.attempt}"

    async def close(self) -> None:
        """Stop every task; programs run on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._api.close()

    # --- tasks ---

    def _spawn(self, key: Key, sort: str, work: Coroutine[Any, Any, None]) -> None:
        if (key, sort) in self._tasks:
            work.close()
            return
        task = asyncio.create_task(work, name=f"{sort} {key.job_id}-{key.attempt}")
        self._tasks[key, sort] = task
        task.add_done_callback(partial(self._done, key, sort))

    def _after(self, key: Key, sort: str, work: Coroutine[Any, Any, None]) -> None:
        """Spawn *work* in the place of the task that asked for it and is about to end."""
        self._tasks.pop((key, sort), None)
        self._spawn(key, sort, work)

    def _done(self, key: Key, sort: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get((key, sort)) is task:
            del self._tasks[key, sort]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task_failed", job_id=key.job_id, attempt=key.attempt, task=sort, exc_info=error)

    def _cancel(self, key: Key, sort: str) -> asyncio.Task[None] | None:
        task = self._tasks.get((key, sort))
        if task is not None:
            task.cancel()
        return task

    # --- acts ---

    async def _prepare(self, order: Order, *, again: bool) -> None:
        key = Key(order.job_id, order.attempt)
        runtime = self._do.runtimes[order.spec.runtime]
        try:
            if again:
                await runtime.clear(key)
            image = await runtime.find_image(order)
            if image is None:
                self._do.post(f.ImageMissing(key))
                image = await self._pull(runtime, order)
            self._do.post(f.ImageFound(key, image.digest))
            inputs = partial(self._inputs, order, runtime, image)
            access = await self._api.admit(order)
            await asyncio.to_thread(check_ports, order.wiring)
            handle = await runtime.stage(order, image, partial(self._source, order), inputs, access)
            self._do.post(f.Staged(key, handle))
        except WherryError as error:
            _log.warning("prepare_failed", job_id=key.job_id, attempt=key.attempt, error=error.message)
            self._do.post(f.Failed(key, failure_from(error)))
        except Exception as error:  # noqa: BLE001 - the attempt ends, and says why
            _log.exception("prepare_broke", job_id=key.job_id, attempt=key.attempt)
            self._do.post(f.Failed(key, Failure(reason=EndReason.RUNTIME_ERROR, message=repr(error))))
        finally:
            self._source_path(key).unlink(missing_ok=True)

    async def _pull(self, runtime: Runtime, order: Order) -> Image:
        """Pull the image, again and again where a registry is only in trouble."""
        key, began = Key(order.job_id, order.attempt), monotonic()
        for pause_s in _PULL_PAUSES_S:
            try:
                return await runtime.pull_image(order, self._teller(key))
            except WherryError as error:
                is_late = monotonic() - began + pause_s >= order.spec.timeouts.pull
                if error.code != EndReason.IMAGE_PULL_FAILED or not error.retryable or is_late:
                    raise  # also where there is no time for another try: it says more than that the time was up
                _log.warning(
                    "pull_failed", job_id=key.job_id, attempt=key.attempt, error=error.message, again_s=pause_s
                )
                words = f"{error.message}; the next try in {pause_s:g} s"
            progress = Progress(fraction=0.0, message=words, at=utc_now())
            await self._do.publish(key, OutputBatch(progress=progress))
            await asyncio.sleep(pause_s)
        return await runtime.pull_image(order, self._teller(key))

    async def _source(self, order: Order) -> Path | None:
        if order.spec.source is None:
            return None
        path = self._source_path(Key(order.job_id, order.attempt))
        path.parent.mkdir(parents=True, exist_ok=True)
        await self._do.storage.fetch_source(order, path)
        return path

    async def _inputs(self, order: Order, runtime: Runtime, image: Image) -> Mapping[str, Given]:
        if not order.spec.inputs:
            return {}
        tell = self._teller(Key(order.job_id, order.attempt))
        return await self._do.inputs.provide(order, runtime, image.id, tell)

    def _source_path(self, key: Key) -> Path:
        return self.folder(key) / "source.zip"

    def _teller(self, key: Key) -> Callable[[float, str], None]:
        """Return what publishes a pull's progress, at most once a second; called from threads."""
        loop = asyncio.get_running_loop()
        told_at = 0.0

        def tell(fraction: float, words: str) -> None:
            nonlocal told_at
            if monotonic() - told_at >= _PULL_TELL_S:
                told_at = monotonic()
                progress = Progress(fraction=min(max(fraction, 0.0), 1.0), message=words, at=utc_now())
                asyncio.run_coroutine_threadsafe(self._do.publish(key, OutputBatch(progress=progress)), loop)

        return tell

    async def _start(self, held: Held, *, again: bool) -> None:
        runtime = self._do.runtimes[held.order.spec.runtime]
        handle = held.handle
        if again:
            await asyncio.sleep(_DOUBT_S)
        is_started = again and await self._was_started(runtime, held)
        while not is_started:
            if held.key in self._unwanted:
                failure = Failure(reason=EndReason.CANCELLED_BY_USER, message="It was told to stop before it began.")
                self._do.post(f.Failed(held.key, failure))
                return
            try:
                await self._api.open(held)
                await runtime.start(held.key, handle)
                break
            except Unavailable as error:
                _log.warning("start_unanswered", job_id=held.key.job_id, attempt=held.key.attempt, error=error.message)
                is_started = await self._was_started(runtime, held)
            except WherryError as error:
                self._do.post(f.Failed(held.key, failure_from(error)))
                return
            except Exception as error:  # noqa: BLE001 - the attempt ends, and says why; what may run is cleared
                _log.exception("start_broke", job_id=held.key.job_id, attempt=held.key.attempt)
                self._do.post(f.Failed(held.key, Failure(reason=EndReason.RUNTIME_ERROR, message=repr(error))))
                return
        self._do.post(f.Started(held.key))
        await self._follow(held)

    async def _was_started(self, runtime: Runtime, held: Held) -> bool:
        """Return whether a start that got no answer has happened. Starting an ended container would run it twice."""
        found: list[str] = []

        async def look() -> None:
            with suppress(NotFound):
                # An engine answers this only when it is not about to start the container; a listing would not wait.
                await runtime.outcome(held.key, held.handle)
            found[:] = [one.condition for one in await runtime.found() if one.key == held.key and one.handle]

        await until_done(look, _try_again)
        return found != ["created"]  # one that is gone shows when it is followed

    async def _follow(self, held: Held) -> None:
        """Read on until the program has ended. Whatever breaks: nobody else would notice its end."""
        outcomes: list[Outcome] = []

        async def follow() -> None:
            outcomes.append(await self._follow_once(held))

        def note(error: Exception) -> None:
            _log.error("following_broke", job_id=held.key.job_id, attempt=held.key.attempt, error=repr(error))

        await until_done(follow, note)
        await self._api.shut(held.key)
        self._do.post(f.Exited(held.key, outcomes[0]))

    async def _follow_once(self, held: Held) -> Outcome:
        key = held.key
        runtime = self._do.runtimes[held.order.spec.runtime]
        await self._api.keep(held)
        pump = OutputPump(
            self.folder(key),
            partial(self._do.publish, key),
            bytes_max=self._do.log_bytes_max,
            rate=None if self._do.log_rate is None else self._log_rate,
            listener=(worker := self._worker(held)),
        )
        self._pumps.add(pump)
        self._api.hear(key, pump)
        beside = [asyncio.create_task(pump.run()), asyncio.create_task(self._measure(runtime, held, pump))]
        if worker is not None:
            beside.append(asyncio.create_task(worker.run(held.handle)))
        outcomes: list[Outcome] = []

        async def read() -> None:
            while not outcomes:
                outcome = await self._read_on(runtime, key, held.handle, pump)
                if outcome is not None:
                    outcomes.append(outcome)

        def judge(error: Exception) -> None:
            if isinstance(error, NotFound):
                outcomes.append(Outcome(None, failure=_gone(error)))
            _log.warning("following_interrupted", job_id=key.job_id, attempt=key.attempt, error=str(error))

        try:
            await until_done(read, judge)
            await pump.finish()
        finally:
            self._api.hear(key, None)
            pump.close()
            self._pumps.discard(pump)
            for task in beside:
                task.cancel()
        return outcomes[0]

    def _worker(self, held: Held) -> Worker | None:
        return self._do.workers.of(held.order) if held.order.map and self._do.workers else None

    def _log_rate(self) -> float:
        """Return what one attempt may publish in a second: those that print much share what the node may."""
        return (self._do.log_rate or 0) / max(1, sum(pump.is_busy for pump in self._pumps))

    async def _measure(self, runtime: Runtime, held: Held, pump: OutputPump) -> None:
        """Look at what the program uses, soon and then every few seconds, until cancelled."""
        before: tuple[datetime, Use] | None = None
        pauses = iter(_MEASURE_S)
        while True:
            await asyncio.sleep(next(pauses, _MEASURE_S[-1]))
            try:
                use = await runtime.use(held.key, held.handle)
            except Exception as error:  # noqa: BLE001 - a look that fails is a point that is missing
                _log.debug("not_measured", job_id=held.key.job_id, attempt=held.key.attempt, error=str(error))
                continue
            if use is not None:
                now = utc_now()
                pump.measure(points(before, now, use, held.order.gpus, self._do.gpus()))
                before = now, use

    async def _read_on(self, runtime: Runtime, key: Key, handle: str, pump: OutputPump) -> Outcome | None:
        """Read until the output ends; return how the program did, or None if it turns out to run on."""
        following = runtime.follow(key, handle, pump.position, pump.sink)
        reading = asyncio.ensure_future(following.wait())
        try:
            while not (await asyncio.wait({reading}, timeout=_LOOK_S))[0]:
                if await runtime.outcome(key, handle) is not None:
                    await _rest(reading, pump)
                    break
            if reading.done():
                reading.result()
        finally:
            following.close()
            if not reading.done():
                with suppress(Exception):
                    async with asyncio.timeout(_LINGER_S):
                        await asyncio.shield(reading)
                reading.cancel()
        for pause_s in _SETTLE_S:
            await asyncio.sleep(pause_s)
            if (outcome := await runtime.outcome(key, handle)) is not None:
                return outcome
        return None

    async def _stop(self, held: Held, grace_s: float) -> None:
        runtime = self._do.runtimes[held.order.spec.runtime]
        running = self._tasks.get((held.key, "run"))
        if grace_s > 0 and self._do.drain is not None:
            grace_s = await self._do.drain(held.key, grace_s)
        if grace_s > 0:
            # Beside the grace, not before it: an engine that is slow to answer does not make it longer.
            term = asyncio.create_task(until_done(partial(runtime.kill, held.key, held.handle, "SIGTERM"), _try_again))
            try:
                await (asyncio.sleep(grace_s) if running is None else asyncio.wait({running}, timeout=grace_s))
            finally:
                term.cancel()
        killed_at: float | None = None
        while running is None or not running.done():
            await until_done(partial(runtime.kill, held.key, held.handle, "SIGKILL"), _try_again)
            if running is None:
                return
            killed_at = killed_at or monotonic()
            if monotonic() - killed_at > _UNKILLABLE_S and not await self._has_ended(runtime, held):
                _log.error("unkillable", job_id=held.key.job_id, attempt=held.key.attempt)
                self._do.post(f.Unkillable(held.key))
                return
            await asyncio.wait({running}, timeout=1.0)

    async def _has_ended(self, runtime: Runtime, held: Held) -> bool:
        """Return whether the program has: then only its output is still being read."""
        try:
            return await runtime.outcome(held.key, held.handle) is not None
        except WherryError:
            return True  # it is gone; or the engine does not answer, which says nothing about the program

    async def _collect(self, held: Held) -> None:
        key = held.key
        runtime = self._do.runtimes[held.order.spec.runtime]
        refusals = 0
        series = await asyncio.to_thread(series_in, self.folder(key))
        unsent = final_batches(series)

        async def bring() -> None:
            if (worker := self._worker(held)) is not None:
                await worker.finish(held.handle)
            await self._keep_metrics(key, unsent)
            outputs, remarks = await collect(
                runtime, self._do.storage, key, held.handle, self.folder(key), self._kept_most(held)
            )
            said = await asyncio.to_thread(self._api.remarks, key)
            self._do.post(f.Collected(key, outputs, (*said, *remarks), peaks=series.peaks()))

        def judge(error: Exception) -> None:
            nonlocal refusals
            _log.warning("collect_interrupted", job_id=key.job_id, attempt=key.attempt, error=repr(error))
            if not (isinstance(error, WherryError) and error.retryable):
                refusals += 1
            if refusals >= _REFUSALS_MAX:
                raise error

        self.folder(key).mkdir(parents=True, exist_ok=True)
        try:
            await until_done(bring, judge, last_s=_COLLECT_PAUSE_MAX_S)
        except Exception as error:  # noqa: BLE001 - reported as the attempt's end
            failure = Failure(reason=EndReason.UPLOAD_FAILED, message=f"The results could not be stored: {error}")
            self._do.post(f.Collected(key, None, failure=failure))

    def _kept_most(self, held: Held) -> int:
        most = self._do.outputs_bytes_max
        return held.order.spec.resources.disk if most is None else most

    async def _keep_metrics(self, key: Key, unsent: list[OutputBatch]) -> None:
        """Send all that was measured, whatever was lost on the way before; what was taken leaves *unsent*.

        Raises:
            Unavailable: nobody has taken it yet.
        """
        while unsent and self._do.keep is not None:
            try:
                await self._do.keep(key, unsent[0])
            except Unavailable:
                raise
            except WherryError as error:  # no reason for a result to be none
                _log.error("metrics_refused", job_id=key.job_id, attempt=key.attempt, error=error.message)
            del unsent[0]

    async def _clear(self, held: Held) -> None:
        key = held.key
        for sort in ("stop", "run"):
            if (task := self._cancel(key, sort)) is not None:
                await asyncio.wait({task})
        runtime = self._do.runtimes.get(held.order.spec.runtime)

        def note(error: Exception) -> None:
            _log.warning("clear_failed", job_id=key.job_id, attempt=key.attempt, error=repr(error))

        await self._api.shut(key)
        if runtime is not None:
            await until_done(partial(runtime.clear, key), note)
        await self._do.inputs.release(key)
        await asyncio.to_thread(remove_tree, self.folder(key))
        self._unwanted.discard(key)
        if self._do.workers is not None:
            self._do.workers.drop(key)
        self._do.post(f.Cleared(key))


async def _rest(reading: asyncio.Future[None], pump: OutputPump) -> None:
    """Let what is left of an ended program's output be read: until its end, or until no more of it comes."""
    while not reading.done():
        before = pump.position
        await asyncio.wait({reading}, timeout=_LINGER_S)
        if pump.position == before:
            return


def _gone(error: Exception) -> Failure:
    return Failure(reason=EndReason.AGENT_LOST_CONTAINER, message=f"The program is gone: {error}")


def _try_again(error: Exception) -> None:
    _log.warning("engine_call_failed", error=str(error))
