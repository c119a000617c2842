"""``python -m services.storage``: until SIGTERM; exit code 75 asks to be started again."""

import asyncio
import signal
import sys

import uvloop

from services.storage.app import run
from services.storage.settings import StorageSettings
from shared import observe
from shared.bus import EXIT_RESTART_ME

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
    return EXIT_RESTART_ME


def main() -> int:
    """Run the service and return its exit code."""
    settings = StorageSettings()
    observe.configure(settings, "storage")
    observe.serve_metrics(settings.storage_metrics_port)
    return uvloop.run(_run_until_told(settings))


if __name__ == "__main__":
    sys.exit(main())
