"""A mail server and a webhook receiver for a machine that has none: whatever arrives is kept as a file.

    python -m infra.local.sinks FOLDER SMTP_PORT HTTP_PORT      (SMTP_PORT 0: webhooks only)

A mail becomes ``<time>.eml``, a webhook ``<time>.json`` with its path, headers and body.
"""

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from infra.local.ports import LOOPBACK, write_whole

BODY_MAX = 4 * 1024 * 1024
#: For the mail server to answer itself: a busy machine is slow.
_READY_S = 60.0


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
    """Takes every POST."""

    folder = Path()

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


def main(folder: Path, smtp_port: int, http_port: int, address: str = LOOPBACK) -> None:
    """Serve both on *address* until SIGTERM."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    folder.mkdir(parents=True, exist_ok=True)
    WebhookSink.folder = folder
    mail = Controller(MailSink(folder), hostname=address, port=smtp_port, ready_timeout=_READY_S) if smtp_port else None
    web = ThreadingHTTPServer((address, http_port), WebhookSink)
    if mail:
        mail.start()
    threading.Thread(target=web.serve_forever, daemon=True).start()
    stop.wait()
    web.shutdown()
    if mail:
        mail.stop()


def _stamp() -> str:
    return f"{time.time_ns():020d}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:5])
