"""A web server of the tests' own, on this machine: files that can break, stand still, never end, or lead elsewhere."""

import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

SILENCE_S = 30.0


class Web:
    """Serves `files` by path, and does as `tricks` says: see `_Handler`. Everything that was asked is in `asked`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, list[int]] = {}  # answered once each, then the file
        self.breaks: dict[str, list[int]] = {}  # bytes after which the connection ends, one for each call
        self.without_etag: set[str] = set()
        self.endless: set[str] = set()
        self.silent: set[str] = set()  # sends half, then waits
        self.gate = threading.Event()  # `gated` files wait for it after their first half
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        self.over = threading.Event()
        handler = type("Handler", (_Handler,), {"web": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def url(self, path: str) -> str:
        return f"http://{self.place}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        web, path = self.web, self.path.partition("?")[0]
        wanted = self.headers.get("Range")
        web.asked.append((path, wanted))
        if path in web.redirects:
            self._head(302, {"Location": web.redirects[path], "Content-Length": "0"})
        elif web.statuses.get(path):
            self._head(web.statuses[path].pop(0), {"Content-Length": "0"})
        elif path in web.endless:
            self._endless()
        elif path in web.files:
            self._file(path, web.files[path], wanted)
        else:
            self._head(404, {"Content-Length": "0"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _file(self, path: str, body: bytes, wanted: str | None) -> None:
        web, tag = self.web, f'"{len(body)}-{body[:8].hex()}"'
        start, status = 0, 200
        headers = {"Accept-Ranges": "bytes", "Content-Type": "text/csv"}
        if path not in web.without_etag:
            headers["ETag"] = tag
            if wanted and self.headers.get("If-Range", tag) == tag:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._head(status, headers | {"Content-Length": str(len(body) - start)})
        stop = start + web.breaks[path].pop(0) if web.breaks.get(path) else None
        if path in web.gated | web.silent:
            self.wfile.write(body[start : len(body) // 2])
            (web.gate if path in web.gated else web.over).wait(SILENCE_S)
            start = max(start, len(body) // 2)
        with suppress(OSError):  # who asked may have had enough
            self.wfile.write(body[start:stop])
        self.close_connection = stop is not None

    def _endless(self) -> None:
        self._head(200, {"Connection": "close"})
        try:
            while not self.web.over.is_set():
                self.wfile.write(b"x" * 65536)
                time.sleep(0.001)
        except OSError:
            self.close_connection = True
