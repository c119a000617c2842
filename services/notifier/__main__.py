"""Start the notifier: ``python -m services.notifier``. Exit code 75 asks to be started again."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from services.notifier.adapters.email import EmailSender
from services.notifier.adapters.webhook import WebhookSender
from services.notifier.settings import NotifierSettings
from services.notifier.shell import Notifier
from shared import observe
from shared.broker_check import check_broker
from shared.bus import EXIT_RESTART_ME, Bus
from shared.channels import SECRET_GET, Service
from shared.errors import WherryError
from shared.events import DeliveryRequested
from shared.requests.accounts import SecretRef
from shared.settings import read_settings


async def run(settings: NotifierSettings) -> int:
    """Work until told to stop, or until the bus is gone for good. Returns the exit code."""
    log = observe.logger("notifier")
    async with Bus.connect(settings, Service.NOTIFIER) as bus:

        async def secret_of(request: DeliveryRequested) -> str:
            ref = SecretRef(owner_id=request.owner_id, ref=request.secret_ref)
            return (await bus.ask(SECRET_GET, ref)).value

        async with WebhookSender(
            settings.webhook_places, settings.webhook_timeout_s, settings.public_url, secret_of
        ) as webhooks:
            notifier = Notifier(
                bus,
                {"webhook": webhooks, "email": EmailSender(settings)},
                at_once=settings.deliveries_at_once,
                per_host=settings.deliveries_per_host,
            )
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            log.info("started", mail=settings.smtp_host or "none", webhook_allow=sorted(settings.webhook_places))
            try:
                return await _until_the_end(_work(notifier, bus), stop, bus.closed)
            except* WherryError as problems:
                log.critical("notifier_ended", error="; ".join(map(str, problems.exceptions)))
        return EXIT_RESTART_ME


async def _work(notifier: Notifier, bus: Bus) -> None:
    await check_broker(bus, Service.NOTIFIER)
    await notifier.run()


async def _until_the_end(working: Coroutine[Any, Any, None], stop: asyncio.Event, closed: asyncio.Event) -> int:
    """Let the notifier work until one of the events; its own failure is raised."""
    work = asyncio.create_task(working)
    stopped, lost = asyncio.create_task(stop.wait()), asyncio.create_task(closed.wait())
    await asyncio.wait({work, stopped, lost}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, lost, work):
        task.cancel()
    results = await asyncio.gather(work, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return 0 if stop.is_set() else EXIT_RESTART_ME


def main() -> None:
    """Read the settings and run."""
    settings = read_settings(NotifierSettings)
    observe.configure(settings, "notifier")
    observe.serve_metrics(settings.notifier_metrics_port)
    sys.exit(asyncio.run(run(settings)))


if __name__ == "__main__":
    main()
