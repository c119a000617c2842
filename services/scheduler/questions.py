"""Questions to the leader, why a job waits and whether one would start, answered between two turns."""

import asyncio
from collections import deque

from services.scheduler.adapters import metrics
from services.scheduler.core.explain import explain, plan
from services.scheduler.core.fleet.state import State
from services.scheduler.core.limits import Now
from shared import observe
from shared.bus import Bus, Handle
from shared.channels import EXPLAIN, PLAN
from shared.errors import NotFound, Unavailable, WherryError
from shared.model import Message
from shared.requests.explain import ExplainQuery, Explanation, PlanQuery

_PER_TURN = 4  # an answer looks at every node and at the whole queue
_AT_ONCE = 64

_log = observe.logger("questions")


class Questions:
    """What has been asked and not been answered. Between turns, because then all that was decided is believed."""

    def __init__(self, some: asyncio.Event) -> None:
        """Set *some* when there is something to answer."""
        self._some = some
        self._waiting: deque[tuple[ExplainQuery | PlanQuery, asyncio.Future[Explanation]]] = deque()

    async def serve(self, bus: Bus) -> list[Handle]:
        """Take questions from now on."""
        return [await bus.serve(channel, self._ask, queue=None, concurrency=_AT_ONCE) for channel in (EXPLAIN, PLAN)]

    def answer(self, state: State, now: Now) -> None:
        """Answer some of them; the others wait for the next turn."""
        for _ in range(min(_PER_TURN, len(self._waiting))):
            query, asked = self._waiting.popleft()
            if asked.done():
                continue
            try:
                asked.set_result(_answer(state, query, now))
            except WherryError as problem:
                asked.set_exception(problem)
            except Exception:  # noqa: BLE001 - logged; a question must not end the scheduler
                _log.exception("question_failed")
                asked.set_exception(WherryError("internal", "The scheduler could not work that out."))
        if self._waiting:
            self._some.set()

    def close(self) -> None:
        """Tell those who wait that there will be no answer."""
        for _, asked in self._waiting:
            asked.cancel()
        self._waiting.clear()

    async def _ask(self, _params: dict[str, str], query: ExplainQuery | PlanQuery) -> Message:
        asked: asyncio.Future[Explanation] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, asked))
        self._some.set()
        try:
            return await asked
        except asyncio.CancelledError:
            raise Unavailable("This scheduler no longer leads.") from None


def _answer(state: State, query: ExplainQuery | PlanQuery, now: Now) -> Explanation:
    if isinstance(query, PlanQuery):
        metrics.EXPLAINED.labels("plan").inc()
        return plan(state, query.owner, query.spec, now)
    metrics.EXPLAINED.labels("explain").inc()
    tracked = state.jobs.get(query.job_id)
    if tracked is None:
        raise NotFound(f"Job {query.job_id} is not active: it has ended, or was never handed in.")
    return explain(state, tracked, now)
