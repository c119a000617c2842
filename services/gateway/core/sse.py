"""The text of server-sent events (WHATWG HTML, 9.2)."""

MEDIA_TYPE = "text/event-stream"
#: A comment that keeps proxies and clients from giving up.
HEARTBEAT = b": still here\n\n"


def frame(data: str | bytes, *, event: str | None = None, event_id: str | int | None = None) -> bytes:
    """Return one event. Every line of *data* gets its own field, so that no content can break out of it."""
    body = data if isinstance(data, bytes) else data.encode()
    head = b""
    if event_id is not None:
        head += b"id: %s\n" % str(event_id).encode()
    if event is not None:
        head += b"event: %s\n" % event.encode()
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return head + b"".join(b"data: %s\n" % line for line in lines) + b"\n"
