"""What a running service tells: structured log lines on standard error, and numbers for Prometheus."""

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import prometheus_client
import structlog
from prometheus_client import Counter

from shared.settings import ServiceSettings

#: Characters of a logged value; what is longer is cut, so that nobody can fill the disk through a field.
VALUE_CHARS_MAX = 4000
#: Of a traceback the end is kept: it says what happened.
TRACEBACK_CHARS_MAX = 16_000
#: Everything that could end a line or drive a terminal: C0, DEL, C1, and Unicode's line and paragraph separators.
_FOR_CONSOLE = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
#: JSON escapes the others by itself.
_FOR_JSON = {127: "\\u007f"}

PUBLISHED = Counter("wherry_bus_published_total", "Records that a stream has acknowledged.", ["stream"])
CONFLICTS = Counter("wherry_bus_conflicts_total", "Writes refused because somebody else wrote first.", ["stream"])
RETRIES = Counter("wherry_bus_retries_total", "Durable writes sent again because no answer came.", ["stream"])
DROPPED = Counter("wherry_bus_dropped_total", "Plain messages not sent: no connection and the buffer full.")
SLOW_CONSUMER = Counter("wherry_bus_slow_consumer_total", "Messages lost because this service read too slowly.")
FORBIDDEN = Counter("wherry_bus_forbidden_total", "Subjects that the broker refused to this service.")
RECONNECTS = Counter("wherry_bus_reconnects_total", "Times that the connection came back.")
ASKED = Counter("wherry_requests_sent_total", "Requests to other services.", ["channel", "outcome"])
ANSWERED = Counter("wherry_requests_answered_total", "Requests from other services.", ["channel", "outcome"])

_EventDict = MutableMapping[str, Any]


def logger(component: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose lines carry *component*; the first argument of a call is the line's `action`."""
    return structlog.stdlib.get_logger(f"wherry.{component}", component=component)


def configure(settings: ServiceSettings, service: str) -> None:
    """Send this process's log lines, those of libraries included, to standard error as *settings* say."""
    console = settings.log_format == "console"
    renderer = structlog.dev.ConsoleRenderer(event_key="action") if console else structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_from_library, *_common(service)],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(() if console else (structlog.processors.format_exc_info,)),
            _printable(_FOR_CONSOLE if console else _FOR_JSON),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries
    logging.getLogger("wherry").setLevel(settings.log_level.upper())
    _set_up([structlog.contextvars.merge_contextvars, *_common(service)])


def serve_metrics(port: int | None, host: str = "0.0.0.0") -> None:  # noqa: S104 - scraped from other machines; off unless set
    """Serve ``/metrics`` on *port* from a thread of its own; do nothing without a port."""
    if port:
        prometheus_client.start_http_server(port, addr=host)


def _common(service: str) -> list[Any]:
    def name_service(_logger: object, _method: str, event: _EventDict) -> _EventDict:
        event["service"] = service
        return event

    return [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        name_service,
        structlog.processors.EventRenamer("action"),
    ]


def _from_library(_logger: object, _method: str, event: _EventDict) -> _EventDict:
    record = event.get("_record")
    event["message"], event["event"] = event.get("event"), "library_log"
    event["component"] = record.name if isinstance(record, logging.LogRecord) else "library"
    return event


def _printable(escapes: Mapping[int, str]) -> Callable[[object, str, _EventDict], _EventDict]:
    def process(_logger: object, _method: str, event: _EventDict) -> _EventDict:
        return {key: value if key == "exc_info" else _clean(key, value, escapes) for key, value in event.items()}

    return process


def _clean(key: str, value: Any, escapes: Mapping[int, str]) -> Any:
    """Escape and cut text, also inside lists and mappings; leave numbers, booleans and None as they are."""
    match value:
        case bool() | int() | float() | None:
            return value
        case dict():
            return {str(name): _clean(str(name), item, escapes) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(key, item, escapes) for item in value]
        case _ if key == "exception":
            return str(value)[-TRACEBACK_CHARS_MAX:].translate(escapes)
        case _:
            text = str(value)
            cut = text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"
            return cut.translate(escapes)


def _set_up(processors: list[Any]) -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *processors,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


_set_up([])  # until `configure`: Python's logging decides, so that tests can read what was logged
