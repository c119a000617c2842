"""Make the broker's streams and consumers what `shared.streams` says: ``python -m infra.bootstrap``.

Reads ``WHERRY_NATS_URL``, ``WHERRY_NATS_USER`` (the user operator) and ``WHERRY_NATS_PASSWORD``;
``WHERRY_NATS_REPLICAS`` says how many servers keep each stream. What is missing is made, what may change is changed,
and what may not is refused with what to do; running it again is harmless. Whether the running server syncs every write
cannot be asked over this connection: the configurations of the local stack and of compose set it.
"""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from shared import observe, streams
from shared.bus import Bus
from shared.channels import Service
from shared.errors import NotFound, WherryError
from shared.settings import ServiceSettings, read_settings

_log = observe.logger("bootstrap")


class BootstrapSettings(ServiceSettings):
    """How many servers keep each stream: 1 for one server, 3 for a cluster."""

    nats_replicas: int = 1


async def bootstrap(bus: Bus, replicas: int = 1) -> list[str]:
    """Create and compare all streams and durables; return one sentence for each thing done.

    Raises:
        WherryError: code ``stream_mismatch``: the server has one that differs in what cannot be changed.
    """
    done = [await _stream(bus, stream, replicas) for stream in streams.STREAMS]
    done += [await _durable(bus, durable, replicas) for durable in streams.DURABLES]
    return [sentence for sentence in done if sentence]


async def _stream(bus: Bus, stream: streams.Stream, replicas: int) -> str | None:
    wanted, title = stream.config(replicas), f"stream {stream.name}"
    live = await _config(bus, f"STREAM.INFO.{stream.name}")
    if live is None:
        await bus.api(f"STREAM.CREATE.{stream.name}", wanted)
        return f"created {title}"
    changes = _changes(title, wanted, live, streams.STREAM_MUTABLE)
    if changes:
        await bus.api(f"STREAM.UPDATE.{stream.name}", {**live, **wanted})
    return changes


async def _durable(bus: Bus, durable: streams.Durable, replicas: int) -> str | None:
    wanted, place = durable.config(replicas), f"{durable.stream}.{durable.name}"
    title = f"consumer {durable.name} of {durable.stream}"
    live = await _config(bus, f"CONSUMER.INFO.{place}")
    changes = f"created {title}" if live is None else _changes(title, wanted, live, streams.CONSUMER_MUTABLE)
    if changes:
        await bus.api(f"CONSUMER.DURABLE.CREATE.{place}", {"stream_name": durable.stream, "config": wanted})
    return changes


async def _config(bus: Bus, info: str) -> dict[str, Any] | None:
    try:
        live = (await bus.api(info, {}))["config"]
    except NotFound:
        return None
    if one := live.get("filter_subject"):  # how the server writes a single filter
        live["filter_subjects"] = [one]
    return live


def _changes(title: str, wanted: Mapping[str, Any], live: Mapping[str, Any], mutable: frozenset[str]) -> str | None:
    """Return what has to be changed, in words, or None.

    Raises:
        WherryError: some of it cannot be changed.
    """
    different = streams.differences(wanted, live)
    if fixed := sorted(different.keys() - mutable):
        details = "; ".join(f"{key} is {different[key][1]!r}, not {different[key][0]!r}" for key in fixed)
        raise WherryError(
            "stream_mismatch",
            f"{title} on the server cannot become what this version needs: {details}. Back it up and remove it.",
        )
    return f"updated {title}: {', '.join(sorted(different))}" if different else None


async def main() -> int:
    """Connect as the environment says and bootstrap; return the exit code."""
    settings = read_settings(BootstrapSettings)
    observe.configure(settings, "bootstrap")
    try:
        # The set-up acts as the core of the system: CTRL is the account of its user.
        async with Bus.connect(settings, Service.SCHEDULER, purpose="bootstrap") as bus:
            for sentence in await bootstrap(bus, settings.nats_replicas):
                _log.info("bootstrapped", done=sentence)
    except WherryError as problem:
        print(problem.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
