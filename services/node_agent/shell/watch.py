"""Looking after the runtimes: whether they answer, what they hold, and which images are there."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

from services.node_agent.core import facts as f
from services.node_agent.core.container import Key
from services.node_agent.core.strays import Strays
from services.node_agent.ports import Runtime, RuntimeFacts
from shared import observe
from shared.clock import monotonic
from shared.errors import WherryError

_WATCH_S = 5.0
_SWEEP_S = 30.0
#: Names of images in a heartbeat: enough for every node that is not a registry.
IMAGES_MAX = 500
_log = observe.logger("watch")


@dataclass(slots=True)
class _Watched:
    """What is known of a runtime. `facts` is None while it does not answer; `problem` says why."""

    runtime: Runtime
    facts: RuntimeFacts | None = None
    problem: str = ""
    is_recovered: bool = False
    images: tuple[str, ...] = ()
    strays: Strays = field(default_factory=lambda: Strays(0.0))


class Watch:
    """Asks each runtime again and again. One that hangs holds up nobody but itself.

    Args:
        runtimes: what is offered.
        stray_age_s: how long what is ours has to be unknown before it is removed.
        held: the attempts of the journal.
        post: takes the fact that a runtime has answered for the first time.
        changed: hears that a runtime answers again, or does no more.
    """

    def __init__(
        self,
        runtimes: Iterable[Runtime],
        stray_age_s: float,
        held: Callable[[], AbstractSet[Key]],
        post: Callable[[f.Fact], None],
        changed: Callable[[], None],
    ) -> None:
        self._watched = {one.name: _Watched(one, strays=Strays(stray_age_s)) for one in runtimes}
        self._held = held
        self._post = post
        self._changed = changed
        self._first = asyncio.Event()
        self._unasked = set(self._watched)

    @property
    def runtimes(self) -> Mapping[str, Runtime]:
        """Return the runtimes by name."""
        return {name: one.runtime for name, one in self._watched.items()}

    @property
    def facts(self) -> Mapping[str, RuntimeFacts]:
        """Return what those that answer say of themselves."""
        return {name: one.facts for name, one in self._watched.items() if one.facts is not None}

    @property
    def problems(self) -> Mapping[str, str]:
        """Return why each does not answer; empty where it does."""
        return {name: one.problem for name, one in self._watched.items()}

    @property
    def images(self) -> tuple[str, ...]:
        """Return names and digests of images on the machine, in order, at most IMAGES_MAX."""
        return tuple(sorted({name for one in self._watched.values() for name in one.images})[:IMAGES_MAX])

    @property
    def with_doors(self) -> tuple[str, ...]:
        """Return the runtimes that answer and can give their programs a door now (network ``api``)."""
        return tuple(
            name
            for name, one in self._watched.items()
            if one.facts is not None and (one.runtime.doors.needs_image or None) in (None, *one.images)
        )

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watched in self._watched.values():
                tasks.create_task(self._watch(watched))
                tasks.create_task(self._sweep(watched))

    async def until_asked(self, timeout_s: float) -> None:
        """Return when every runtime has been asked once, or after *timeout_s*."""
        if self._unasked:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._first.wait()
            except TimeoutError:
                _log.warning("runtime_slow", runtimes=sorted(self._unasked))

    async def close(self) -> None:
        """Let go of every runtime; programs run on."""
        for watched in self._watched.values():
            await watched.runtime.close()

    # --- does it answer? ---

    async def _watch(self, watched: _Watched) -> None:
        while True:
            try:
                facts = await watched.runtime.describe()
                if not watched.is_recovered:
                    await self._recover(watched)
            except Exception as error:  # noqa: BLE001 - whatever an engine does, the node lives on without it
                self._is_away(watched, error)
            else:
                self._is_there(watched, facts)
            self._unasked.discard(watched.runtime.name)
            if not self._unasked:
                self._first.set()
            await asyncio.sleep(_WATCH_S)

    def _is_there(self, watched: _Watched, facts: RuntimeFacts) -> None:
        is_news = watched.facts is None
        watched.facts, watched.problem = facts, ""
        if is_news:
            _log.info("runtime_there", runtime=watched.runtime.name, found=facts.text)
            self._changed()

    def _is_away(self, watched: _Watched, error: Exception) -> None:
        problem = error.message if isinstance(error, WherryError) else repr(error)
        is_news = watched.facts is not None or watched.problem != problem
        watched.facts, watched.problem = None, problem
        if is_news:
            _log.warning("runtime_away", runtime=watched.runtime.name, error=problem)
            self._changed()

    async def _recover(self, watched: _Watched) -> None:
        """Tell the machine, once, what a runtime holds of ours."""
        held: dict[Key, tuple[str, Literal["created", "started"]]] = {
            one.key: (one.handle, one.condition) for one in await watched.runtime.found() if one.handle
        }
        watched.images = await watched.runtime.images()
        watched.is_recovered = True
        self._post(f.Recovered(watched.runtime.name, held))

    # --- what is in it that nobody wants? ---

    async def _sweep(self, watched: _Watched) -> None:
        while True:
            if watched.facts is not None:
                try:
                    await self._sweep_once(watched)
                except Exception as error:  # noqa: BLE001 - `_watch` finds out what is wrong
                    _log.warning("sweep_failed", runtime=watched.runtime.name, error=str(error))
                await asyncio.sleep(_SWEEP_S)
            else:
                await asyncio.sleep(_WATCH_S / 10)

    async def _sweep_once(self, watched: _Watched) -> None:
        watched.images = await watched.runtime.images()
        unknown = {one.key for one in await watched.runtime.found()} - self._held()
        for key in watched.strays.due(unknown, monotonic()):
            _log.warning("stray_removed", runtime=watched.runtime.name, job_id=key.job_id, attempt=key.attempt)
            await watched.runtime.clear(key)
