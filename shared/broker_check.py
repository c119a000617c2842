"""Before a service works, it looks whether the streams and consumers that it uses are what this version needs.

Whoever writes into a stream that forgets, or reads through a consumer that skips, would break promises without a sound.
Setting things right is `infra.bootstrap`'s, or a person's; a service only looks.
"""

from collections.abc import Mapping
from typing import Any

from shared import observe, streams
from shared.bus import Bus
from shared.channels import Service
from shared.errors import NotFound, Unavailable, WherryError
from shared.permissions import CONSUMERS, LOOKS_UP

Difference = Mapping[str, tuple[Any, Any]]

_log = observe.logger("broker_check")


async def check_broker(bus: Bus, service: Service) -> None:
    """Compare every stream and consumer that *service* may look at with what this version needs of it.

    What differs without harm is logged. Whether each write is synced to disk cannot be asked over this connection:
    `infra.bootstrap` looks at it where the server's monitoring can be reached.

    Raises:
        WherryError: code ``stream_mismatch``: one is missing, or is such that something would be lost.
    """
    names, durables = LOOKS_UP.get(service, ()), CONSUMERS.get(service, ())
    problems: list[str] = []
    for stream in (one for one in streams.STREAMS if one.name in names):
        live = await live_config(bus, f"STREAM.INFO.{stream.name}")
        wanted = stream.config(int((live or {}).get("num_replicas", 1)))
        problems += _compare(f"stream {stream.name}", wanted, live)
    for durable in (one for one in streams.DURABLES if (one.stream, one.name) in durables):
        live = await live_config(bus, f"CONSUMER.INFO.{durable.stream}.{durable.name}")
        wanted = durable.config(int((live or {}).get("num_replicas", 0)))
        problems += _compare(f"consumer {durable.name} of {durable.stream}", wanted, live)
    if problems:
        raise WherryError(
            "stream_mismatch", f"{service.value} does not start: {'; '.join(problems)}. Run infra.bootstrap."
        )


async def live_config(bus: Bus, info: str) -> dict[str, Any] | None:
    """Return the configuration as ``STREAM.INFO.…`` or ``CONSUMER.INFO.…`` tells it, None if there is none."""
    while True:
        try:
            live = (await bus.api(info, {}))["config"]
        except NotFound:
            return None
        except Unavailable as problem:
            if bus.closed.is_set():
                raise
            _log.warning("broker_awaited", error=problem.message)
        else:
            break
    if one := live.get("filter_subject"):  # how the server writes a single filter
        live["filter_subjects"] = [one]
    return live


def describe(different: Difference) -> str:
    """Return in words how something on the server differs."""
    return "; ".join(f"{key} is {live!r}, not {wanted!r}" for key, (wanted, live) in sorted(different.items()))


def _compare(title: str, wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> list[str]:
    if live is None:
        return [f"{title} is missing"]
    harmful = streams.losses(wanted, live)
    harmless = {key: both for key, both in streams.differences(wanted, live).items() if key not in harmful}
    if harmless:
        _log.warning("broker_differs", what=title, differences=describe(harmless))
    return [f"{title} would lose something: {describe(harmful)}"] if harmful else []
