"""Start a gateway: ``python -m services.gateway``."""

import asyncio
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from shared import observe
from shared.bus import EXIT_RESTART_ME
from shared.heap import keep_heap
from shared.settings import read_settings

#: How long a connection without requests is kept, in seconds: longer than clients (httpx: 5) and proxies (60) keep
#: theirs. Who closes first must not be the one who cannot know that a request is on its way.
_IDLE_S = 75
_log = observe.logger("gateway")


class _Server(uvicorn.Server):
    """uvicorn that lets event streams end before it waits for open requests, and ends in order on SIGTERM."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises the signal again at its end, which would kill the process before it has cleaned up.
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self.handle_exit, signum, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and app.state.gateway is not None:
            app.state.gateway.stop_streams()
        await super().shutdown(sockets)


async def serve(settings: GatewaySettings) -> int:
    """Serve until told to stop; return the exit code."""
    app = create_app(settings)
    server = _Server(
        uvicorn.Config(
            app, host=settings.host, port=settings.port, http="httptools", lifespan="on", access_log=False,
            log_config=None, server_header=False, timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            timeout_keep_alive=_IDLE_S,
            proxy_headers=bool(settings.trusted_proxies), forwarded_allow_ips=settings.trusted_proxies or None,
        )
    )  # fmt: skip
    broken = asyncio.create_task(app.state.broken.wait())
    serving = asyncio.create_task(server.serve())
    await asyncio.wait({broken, serving}, return_when=asyncio.FIRST_COMPLETED)
    cut_off = broken.done()
    server.should_exit = True
    await serving
    broken.cancel()
    _log.info("gateway_stopped", cut_off=cut_off)
    return EXIT_RESTART_ME if cut_off else 0 if server.started else 1


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    keep_heap()
    settings = read_settings(GatewaySettings)
    observe.configure(settings, "gateway")
    observe.serve_metrics(settings.gateway_metrics_port)
    config = uvicorn.Config("", loop="uvloop")
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        sys.exit(runner.run(serve(settings)))


if __name__ == "__main__":
    main()
