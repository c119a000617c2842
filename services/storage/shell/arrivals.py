"""Whether what an attempt has said is written down: whoever sees a job's end sees its output."""

from datetime import timedelta

from services.storage.shell.jobs import WAIT_S, ProjectionMark
from shared.bus import Bus
from shared.channels import LOGS, OUTPUT
from shared.clock import monotonic, utc_now
from shared.job import Job

_LOOK_AGAIN_S = 0.05
#: The durable consumer by which storage writes output down.
CONSUMER = "storage-log"
#: For how long after a job's end what shows little of its output, and is asked for often, waits for that as well.
FRESH = timedelta(minutes=1)


class Arrivals:
    """Waits until lines, progress and metrics that the stream has of an attempt that is over are in MongoDB.

    Args:
        bus: where the stream is.
        mark: up to which sequence of the stream of output this process has written.
    """

    def __init__(self, bus: Bus, mark: ProjectionMark) -> None:
        self._bus = bus
        self._mark = mark
        self._look_at = 0.0

    async def catch_up(self, job: Job, attempt: int | None = None) -> None:
        """Wait until what was said of an attempt (the last one) that is over is written, at most WAIT_S seconds.

        What one that goes on says is shown as far as it has come in.

        Raises:
            Unavailable: NATS does not answer.
        """
        number = job.attempt if attempt is None else attempt
        if number == job.attempt and not job.is_terminal:
            return
        last = await self._bus.last(LOGS, OUTPUT.wildcard(job_id=job.id, attempt=str(number)))
        give_up_at = monotonic() + WAIT_S
        while last and self._mark.seq < last.seq and monotonic() < give_up_at:
            if monotonic() >= self._look_at:  # one look is for all who wait
                self._look_at = monotonic() + _LOOK_AGAIN_S
                # Another process may have written it, or the one before this: the consumer knows.
                info = await self._bus.api(f"CONSUMER.INFO.{LOGS}.{CONSUMER}", {})
                self._mark.move(int(info["ack_floor"]["stream_seq"]))
            if self._mark.seq < last.seq:
                await self._mark.wait(_LOOK_AGAIN_S)

    async def catch_up_fresh(self, job: Job) -> None:
        """Wait as `catch_up` does if the job has ended just now.

        Raises:
            Unavailable: NATS does not answer.
        """
        if job.ended_at is not None and utc_now() - job.ended_at < FRESH:
            await self.catch_up(job)
