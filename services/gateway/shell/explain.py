"""Asking the leading scheduler why, and telling of ended jobs without it."""

from typing import TypeVar

from services.gateway.core import explain, submission
from services.gateway.shell.gateway import Gateway
from shared.channels import EXPLAIN, PLAN, Channel
from shared.errors import Unavailable, WherryError
from shared.job import Job
from shared.model import Message
from shared.requests.accounts import Principal
from shared.requests.explain import ExplainQuery, Explanation, PlanQuery
from shared.spec import JobSpec

M = TypeVar("M", bound=Message)

#: Seconds for an answer, and for which a scheduler is looked for: a standby takes over within a few.
_ANSWER_S, _LOOK_S = 5.0, 5.0


async def of_job(gateway: Gateway, principal: Principal, job_id: str) -> tuple[Job, Explanation]:
    """Return a job, and why it waits, or why it is where it is.

    Raises:
        WherryError: ``not_found``; ``unavailable``: nobody leads, or the job is not taken in yet.
    """
    job = (await gateway.job(principal, job_id)).job
    if job.is_terminal:
        return job, explain.ended(job)
    try:
        return job, await _ask(gateway, EXPLAIN, ExplainQuery(job_id=job_id))
    except WherryError as error:
        if error.code != "not_found":
            raise
    job = (await gateway.job(principal, job_id)).job  # the scheduler forgets what has ended
    if job.is_terminal:
        return job, explain.ended(job)
    raise Unavailable("The scheduler has not taken this job in yet: ask again in a moment.")


async def of_spec(gateway: Gateway, principal: Principal, spec: JobSpec) -> Explanation:
    """Return where a job of *spec* would go now, or why it would wait.

    Raises:
        WherryError: ``unavailable``: nobody leads.
    """
    return await _ask(gateway, PLAN, PlanQuery(owner=submission.owner_of(principal), spec=spec))


async def _ask(gateway: Gateway, channel: Channel[M, Explanation], question: M) -> Explanation:
    try:
        return await gateway.bus.ask(channel, question, timeout_s=_ANSWER_S, retry_s=_LOOK_S)
    except Unavailable:
        raise Unavailable("No scheduler answers at the moment, and only it can tell: ask again in a moment.") from None
