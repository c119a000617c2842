"""Bringing images and inputs to the node before a job wants them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from services.node_agent.core.container import Key
from services.node_agent.ports import Image, Runtime
from services.node_agent.shell.inputs import Inputs
from shared import observe
from shared.errors import WherryError
from shared.fleet import Order, Prefetch, PrefetchEnd
from shared.spec import Input, JobSpec

_NAME = "input"
_LONGEST_S = 3600.0
_log = observe.logger("prefetch")


class Prefetches:
    """One task for each prefetch that is wanted; what has ended is told until it is wanted no more.

    Args:
        inputs: of the node.
        runtimes: by name.
        ended: hears that one has ended.
    """

    def __init__(self, inputs: Inputs, runtimes: Mapping[str, Runtime], ended: Callable[[], None]) -> None:
        self._inputs = inputs
        self._runtimes = runtimes
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[str]] = {}

    @property
    def ended(self) -> tuple[PrefetchEnd, ...]:
        """Return those that have ended, and how."""
        done = [(id_, task) for id_, task in self._tasks.items() if task.done() and not task.cancelled()]
        return tuple(PrefetchEnd(id=id_, error=task.result()) for id_, task in done)

    def want(self, wanted: Iterable[Prefetch]) -> None:
        """Begin with what is new, and let go of what is not wanted any more."""
        by_id = {one.id: one for one in wanted}
        for id_ in self._tasks.keys() - by_id.keys():
            self._tasks.pop(id_).cancel()
        for id_ in by_id.keys() - self._tasks.keys():
            task = asyncio.create_task(self._bring(by_id[id_]), name=f"prefetch {id_}")
            task.add_done_callback(lambda _: self._ended())
            self._tasks[id_] = task

    async def close(self) -> None:
        """Stop all of them."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _bring(self, wanted: Prefetch) -> str:
        """Bring it, and return why that came to nothing; nothing where it did not."""
        try:
            async with asyncio.timeout(_LONGEST_S):
                await (self._bring_input(wanted, wanted.input) if wanted.input else self._bring_image(wanted))
        except TimeoutError:
            return f"not there after {_LONGEST_S:g} s"
        except WherryError as error:
            return error.message
        except Exception as error:  # noqa: BLE001 - told as its end
            _log.exception("prefetch_broke", prefetch_id=wanted.id)
            return repr(error)
        _log.info("prefetched", prefetch_id=wanted.id)
        return ""

    async def _bring_image(self, wanted: Prefetch) -> None:
        runtime = self._runtimes.get("docker")
        if runtime is None:
            raise WherryError("runtime_error", "This node runs no containers.")
        order = _order(wanted, JobSpec(image=wanted.image))
        if await runtime.find_image(order) is None:
            await runtime.pull_image(order, partial(_tell, wanted))

    async def _bring_input(self, wanted: Prefetch, given: Input) -> None:
        runtime, image = await self._runtime()
        order = _order(wanted, JobSpec(runtime="process", command="true", inputs={_NAME: given}))
        try:
            await self._inputs.provide(order, runtime, image.id, partial(_tell, wanted))
        finally:
            await self._inputs.release(Key(order.job_id, order.attempt))

    async def _runtime(self) -> tuple[Runtime, Image]:
        """Return whose volume it becomes: containers' where there are any, which are filled through some image."""
        if (docker := self._runtimes.get("docker")) is not None:
            for name in await docker.images():
                order = Order(job_id="", owner_id="", attempt=0, spec=JobSpec(image=name), seq=0)
                if (image := await docker.find_image(order)) is not None:
                    return docker, image
        if (processes := self._runtimes.get("process")) is not None:
            return processes, Image("", None)
        raise WherryError("runtime_error", "The node has no image yet through which a volume could be filled.")


def _order(wanted: Prefetch, spec: JobSpec) -> Order:
    return Order(job_id=wanted.id, owner_id="", attempt=0, spec=spec, seq=0)


def _tell(wanted: Prefetch, fraction: float, words: str) -> None:
    _log.debug("prefetching", prefetch_id=wanted.id, fraction=fraction, words=words)
