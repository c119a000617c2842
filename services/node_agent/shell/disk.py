"""Watching how much disk programs use: nothing else keeps them from filling the machine."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Gauge

from services.node_agent.core import facts as f
from services.node_agent.core.attempt import STARTED, Held
from services.node_agent.core.container import Key
from services.node_agent.ports import Runtime
from shared import observe
from shared.clock import monotonic
from shared.errors import WherryError

#: A look may take this share of the time: an engine with much on its disk is asked less often.
_SHARE = 0.1
_log = observe.logger("disk")

DISK_USED = Gauge("wherry_agent_disk_used_bytes", "Bytes on disk that running programs have written.", ["runtime"])


class DiskWatch:
    """Looks again and again at what running programs have written, and tells of those that passed their promise.

    Args:
        runtimes: by name.
        running: the attempts whose programs run.
        post: takes the facts.
        interval_s: seconds between two looks; more where a look takes long.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        running: Callable[[], Iterable[Held]],
        post: Callable[[f.Fact], None],
        interval_s: float,
    ) -> None:
        self._runtimes = runtimes
        self._running = running
        self._post = post
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, runtime in self._runtimes.items():
                tasks.create_task(self._watch(name, runtime))

    async def _watch(self, name: str, runtime: Runtime) -> None:
        while True:
            began = monotonic()
            promised = {one.key: one.order.spec.resources.disk for one in self._running_on(name)}
            if promised:
                await self._look(runtime, promised)
            await asyncio.sleep(max(self._interval_s, (monotonic() - began) / _SHARE))

    async def _look(self, runtime: Runtime, promised: Mapping[Key, int]) -> None:
        try:
            used = await runtime.disk_used(tuple(promised))
        except WherryError as error:  # busy with the same question, or away: it is asked again
            _log.warning("disk_not_known", runtime=runtime.name, error=error.message)
            return
        except Exception:  # noqa: BLE001 - whatever an engine answers, the node lives on
            _log.exception("disk_not_known", runtime=runtime.name)
            return
        DISK_USED.labels(runtime.name).set(sum(used.get(key, 0) for key in promised))
        for key, most in promised.items():
            if used.get(key, 0) > most:
                _log.warning("disk_over", job_id=key.job_id, attempt=key.attempt, used=used[key], promised=most)
                self._post(f.OverDisk(key, used[key]))

    def _running_on(self, name: str) -> list[Held]:
        return [one for one in self._running() if one.order.spec.runtime == name and one.phase in STARTED]
