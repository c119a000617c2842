"""Starts a scheduler: ``python -m services.scheduler``. Exit code 75 means: start me again."""

import asyncio
import signal
import sys

import uvloop

from services.scheduler.settings import SchedulerSettings
from services.scheduler.shell import Scheduler
from shared import observe
from shared.broker_check import check_broker
from shared.bus import EXIT_RESTART_ME, Bus
from shared.channels import Service
from shared.errors import WherryError
from shared.ids import new_id
from shared.settings import read_settings

_log = observe.logger("scheduler")


async def run(settings: SchedulerSettings) -> int:
    """Run until a signal or until the bus is closed for good; return the exit code."""
    observe.serve_metrics(settings.scheduler_metrics_port)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with Bus.connect(settings, Service.SCHEDULER) as bus:
        working = asyncio.create_task(_work(Scheduler(bus, settings, settings.scheduler_id or new_id("s")), bus))
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(bus.closed.wait())]
        await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
        for task in (working, *ends):
            task.cancel()
        outcome = (await asyncio.gather(working, return_exceptions=True))[0]
        if isinstance(outcome, WherryError):
            _log.critical("scheduler_ended", error=outcome.message)
            return EXIT_RESTART_ME
        if isinstance(outcome, Exception):
            raise outcome
        return EXIT_RESTART_ME if bus.closed.is_set() else 0


async def _work(scheduler: Scheduler, bus: Bus) -> None:
    await check_broker(bus, Service.SCHEDULER)
    await scheduler.run()


def main() -> None:
    """Read the settings and run."""
    settings = read_settings(SchedulerSettings)
    observe.configure(settings, Service.SCHEDULER.value)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(run(settings)))


if __name__ == "__main__":
    main()
