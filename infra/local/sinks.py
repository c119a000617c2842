"""A mail server and a webhook receiver for a machine that has none: whatever arrives is kept as a file.

    python -m infra.local.sinks FOLDER SMTP_PORT HTTP_PORT      (SMTP_PORT 0: webhooks only)

A mail becomes ``<time>.eml``, a webhook ``<time>.json`` with its path, headers and body.
"""

import asyncio
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from infra.local.ports import LOOPBACK, TAKES_WEBHOOKS, write_whole

BODY_MAX = 4 * 1024 * 1024


class MailSink:
    """Takes every mail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep one mail."""
        content = envelope.content or b""
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        write_whole(self.folder / f"{_stamp()}.eml", text)
        return "250 kept"


class WebhookSink(BaseHTTPRequestHandler):
    """Takes every POST. Who asks by GET is told that it is this."""

    folder = Path()

    def do_GET(self) -> None:
        """Say nothing, in a way that another program on this port would not."""
        self.send_response(204, TAKES_WEBHOOKS)
        self.end_headers()

    def do_POST(self) -> None:
        """Keep one request."""
        size = int(self.headers.get("Content-Length") or 0)
        if size > BODY_MAX:
            self.send_error(413)
            return
        body = self.rfile.read(size).decode("utf-8", "replace")
        kept: dict[str, Any] = {"path": self.path, "headers": dict(self.headers.items()), "body": body}
        write_whole(self.folder / f"{_stamp()}.json", json.dumps(kept, indent=2) + "\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Say nothing: the file is the record."""


class _Web(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Listen without asking for this machine's name, which `http.server` does, and which can take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def main(folder: Path, smtp_port: int, http_port: int, address: str = LOOPBACK) -> None:
    """Serve both on *address* until SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    WebhookSink.folder = folder
    asyncio.run(_serve(folder, smtp_port, http_port, address))


async def _serve(folder: Path, smtp_port: int, http_port: int, address: str) -> None:
    """Take mail, and then webhooks: where these are taken, both are."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if smtp_port:
        # Not by aiosmtpd's Controller: it gives up where it is not ready within seconds. The name is said to clients.
        await loop.create_server(
            lambda: SMTP(MailSink(folder), hostname="localhost", enable_SMTPUTF8=True), address, smtp_port
        )
    web = _Web((address, http_port), WebhookSink)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    await stop.wait()
    web.shutdown()


def _stamp() -> str:
    return f"{time.time_ns():020d}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:5])
