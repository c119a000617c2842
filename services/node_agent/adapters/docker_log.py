"""What a container of a Docker engine prints, read from its log."""

import socket
from contextlib import suppress
from functools import partial
from typing import Any

from services.node_agent.adapters.docker_engine import Engine, translated
from services.node_agent.adapters.reader_thread import ReaderThread
from services.node_agent.core.frames import FrameParser, LogPosition, moment, unread
from services.node_agent.ports import Chunk, Sink
from shared.errors import NotFound


def follow(engine: Engine, handle: str, position: dict[str, Any] | None, sink: Sink) -> ReaderThread:
    """Begin to read the container's log from *position* on, until it ends."""
    place = LogPosition(**(position or {}))
    return ReaderThread(f"log-{handle[:12]}", partial(_read, engine, handle, place, sink))


def _read(engine: Engine, handle: str, position: LogPosition, sink: Sink, reader: ReaderThread) -> None:
    """Follow the log to its end, then read what is left of it.

    An engine may end the following of a program that prints much and ends with thousands of lines unsent (seen
    with 20.10). All of them are in its log.
    """
    _read_once(engine, handle, position, sink, reader, follow=True)
    if not reader.is_closed:
        _read_once(engine, handle, LogPosition(**position.saved()), sink, reader, follow=False)


def _read_once(
    engine: Engine, handle: str, position: LogPosition, sink: Sink, reader: ReaderThread, *, follow: bool
) -> None:
    api: Any = engine.api()
    query = {"follow": int(follow), "stdout": 1, "stderr": 1, "timestamps": 1, "since": position.since() or 0}
    frames = FrameParser()
    with translated("reading a container's log"):
        response = api.get(
            api.url(f"containers/{handle}/logs"), params=query, stream=True, timeout=(engine.timeout_s, None)
        )
        try:
            reader.interrupt = partial(_shut_down, api, response)
            if response.status_code == 404:
                raise NotFound("the container is gone")
            response.raise_for_status()
            for data in response.iter_content(None):
                if reader.is_closed:
                    return
                for frame, behind in unread(frames.feed(data), position):
                    sink(Chunk(frame.stream, moment(frame.stamp), frame.data, behind))
        finally:
            reader.interrupt = None
            response.close()


def _shut_down(api: Any, response: Any) -> None:
    """Wake the thread that waits for more of *response*: closing alone would not."""
    with suppress(AttributeError, ValueError):
        reader: Any = api._get_raw_response_socket(response)  # noqa: SLF001 - there is no public way
        getattr(reader, "_sock", reader).shutdown(socket.SHUT_RDWR)
