"""Serve the model that is in the workspace, or among the inputs: ``python -m serving``."""

import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from serving import inference, tensorflow
from serving.model import Model, NoModelError, find

#: What it ends with where there is no model.
NO_MODEL = 3
_BODY_BYTES_MAX = 64 * 1024 * 1024
_V1 = re.compile(r"^/v1/models/([^/:]+)(?:/versions/[^/:]+)?(:predict)?$")
_V2 = re.compile(r"^/v2/models/([^/]+)(?:/versions/[^/]+)?(?:/(ready|infer))?$")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "wherry-serving/1"
    timeout = 120
    #: An answer goes out in one piece, and at once: a body that waits for its head to be acknowledged comes 40 ms late.
    wbufsize = -1
    disable_nagle_algorithm = True
    model: Model

    def do_GET(self) -> None:
        """Tell how the model is."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._send(200, {"status": "ok"})
        elif path == "/v2":
            self._send(200, inference.SERVER)
        elif path in ("/v2/health/live", "/v2/health/ready"):
            self._send(200, {path.rpartition("/")[2]: True})
        elif (found := _V2.match(path)) and found[2] == "ready":
            self._send(200, {"name": found[1], "ready": True})
        elif found and found[2] is None:
            self._send(200, inference.metadata(self.model, found[1]))
        elif (found := _V1.match(path)) and not found[2]:
            status = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            self._send(200, {"model_version_status": [status]})
        else:
            self._send(404, {"error": f"there is nothing at {path}"})

    def do_POST(self) -> None:
        """Ask the model."""
        if (body := self._body()) is None:
            return
        path = self.path.partition("?")[0]
        try:
            if (found := _V1.match(path)) and found[2]:
                self._send(200, tensorflow.predict(self.model, json.loads(body)))
            elif (found := _V2.match(path)) and found[2] == "infer":
                answer, cut = inference.infer(self.model, found[1], body, self.headers.get(inference.LENGTH_HEADER))
                self._answer(200, answer, {} if cut is None else {inference.LENGTH_HEADER: str(cut)})
            else:
                self._send(404, {"error": f"there is nothing at {path}"})
        except (ValueError, TypeError, OverflowError, RecursionError) as error:  # JSON that is none, too
            self._send(400, {"error": str(error)})

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            self._send(411, {"error": "Content-Length is missing"})
        elif int(length) > _BODY_BYTES_MAX:
            self.close_connection = True
            self._send(413, {"error": f"a request has at most {_BODY_BYTES_MAX} bytes"})
        else:
            return self.rfile.read(int(length))
        return None

    def _send(self, status: int, said: dict[str, Any]) -> None:
        self._answer(status, json.dumps(said).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        kind = "application/octet-stream" if headers else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is there
        """Say nothing about what went well."""
        if not str(args[1:2] and args[1]).startswith("2"):
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128


def main() -> int:
    """Serve until SIGTERM; return the exit code."""
    workspace, inputs = os.environ.get("WHERRY_WORKSPACE", "."), os.environ.get("WHERRY_INPUTS", "inputs")
    try:
        Handler.model = find([Path(workspace), Path(inputs)])
    except NoModelError as error:
        print(f"wherry-serving: {error}", file=sys.stderr)
        return NO_MODEL
    with Server(("", int(os.environ.get("PORT", "8080"))), Handler) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"serving {Handler.model.width} x {Handler.model.height} x {Handler.model.channels}, "
              f"{len(Handler.model.classes)} classes, on port {server.server_port}")  # fmt: skip
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
