"""``python -m services.storage``: until SIGTERM; exit code 75 asks to be started again."""

import asyncio
import signal
import sys

import uvloop

from services.storage.app import run
from services.storage.settings import StorageSettings
from shared import observe
from shared.bus import EXIT_RESTART_ME
from shared.errors import WherryError
from shared.heap import keep_heap
from shared.settings import read_settings

log = observe.logger("storage")


async def _run_until_told(settings: StorageSettings) -> int:
    work = asyncio.ensure_future(run(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        log.info("storage_stopped")
        return 0
    except WherryError as problem:
        log.critical("storage_ended", error=problem.message)
    except ExceptionGroup as problems:
        if problems.split(WherryError)[1]:
            raise
        log.critical("storage_ended", error="; ".join(map(str, problems.exceptions)))
    return EXIT_RESTART_ME


def main() -> int:
    """Run the service and return its exit code."""
    keep_heap()
    settings = read_settings(StorageSettings)
    observe.configure(settings, "storage")
    observe.serve_metrics(settings.storage_metrics_port)
    return uvloop.run(_run_until_told(settings))


if __name__ == "__main__":
    sys.exit(main())
