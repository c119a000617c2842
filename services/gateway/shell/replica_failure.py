"""Looking up why a service's last replica has failed."""

from contextlib import suppress

from services.gateway.core.replica_failure import ReplicaFailure, failure_of, is_by_program
from services.gateway.shell.gateway import Gateway
from shared.channels import JOB_LOGS
from shared.errors import WherryError
from shared.job import Job
from shared.requests.jobs import LogQuery
from shared.states import JobState

#: Last lines among which a program's last words are.
_LINES = 10


async def last(gateway: Gateway, service: Job) -> ReplicaFailure | None:
    """Return the replica of *service* that was made last among those that have failed; None: none has.

    Raises:
        WherryError: storage does not answer.
    """
    replica = await gateway.serving.last_failed(service.id)
    if replica is None:
        return None
    if not is_by_program(replica):
        return failure_of(replica)
    return failure_of(replica, (await gateway.ask(JOB_LOGS, LogQuery(job_id=replica.id, tail=_LINES))).lines)


async def explained(gateway: Gateway, service_id: str, error: WherryError) -> WherryError:
    """Return *error*, that a service has no replica now, with why the last one has failed, if one has."""
    with suppress(WherryError):
        service = await gateway.serving.job(service_id)
        if any(one.state is JobState.RUNNING for one in service.members):
            return error
        if (failure := await last(gateway, service)) is not None:
            told = f"{error.message.removesuffix('.')}. The last one ({failure.job_id}): {failure.message}"
            return WherryError(error.code, told, retryable=error.retryable)
    return error
