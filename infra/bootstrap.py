"""Make the broker's streams and consumers what `shared.streams` says: ``python -m infra.bootstrap``.

Reads ``WHERRY_NATS_URL``, ``WHERRY_NATS_USER`` (the user operator) and ``WHERRY_NATS_PASSWORD``;
``WHERRY_NATS_REPLICAS`` says how many servers keep each stream. What is missing is made, what may change is changed,
and what may not is refused with what to do; running it again is harmless.

What was there once and is gone is not made again as if nothing had happened: an empty log in place of a lost one would
hide the loss, and a consumer that begins anew sends every notification again. Each stream's metadata remembers what was
made; ``WHERRY_NATS_RECREATE`` names, separated by commas, what is to be made again all the same.

Whether the running server syncs every write to disk cannot be asked over this connection. With
``WHERRY_NATS_MONITOR_URL`` (the server's ``http:`` address) it is asked there, and a server that does not is refused.
"""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

from shared import observe, streams
from shared.broker_check import describe, live_config
from shared.bus import Bus
from shared.channels import Service
from shared.errors import WherryError
from shared.settings import ServiceSettings, read_settings

#: In the metadata of every stream: all streams and consumers that have been made on this server.
MADE = "wherry.made"
_log = observe.logger("bootstrap")


class BootstrapSettings(ServiceSettings):
    """How many servers keep each stream (1, or 3 in a cluster), what to make again, and where the server is watched."""

    nats_replicas: int = 1
    nats_recreate: str = ""
    nats_monitor_url: str = ""


async def bootstrap(bus: Bus, replicas: int = 1, recreate: Iterable[str] = ()) -> list[str]:
    """Create and compare all streams and durables; return one sentence for each thing done.

    Args:
        bus: connected as the operator.
        replicas: servers that keep each stream.
        recreate: names of streams, and of consumers as ``<stream>.<name>``, that are made although they were lost.

    Raises:
        WherryError: code ``stream_mismatch``: the server has one that differs in what cannot be changed; code
            ``stream_lost``: one was there, and is gone. Nothing has been changed then.
    """
    live = {one.name: await live_config(bus, f"STREAM.INFO.{one.name}") for one in streams.STREAMS}
    await _refuse_losses(bus, live, set(recreate))
    done = [await _stream(bus, one, live[one.name], replicas) for one in streams.STREAMS]
    done += [await _durable(bus, durable, replicas) for durable in streams.DURABLES]
    await _remember(bus)
    return [sentence for sentence in done if sentence]


async def check_sync(monitor_url: str) -> None:
    """Ask the server's monitoring whether every write is on disk before it is acknowledged.

    Raises:
        WherryError: code ``stream_mismatch``: it is not; ``unavailable``: the monitoring does not answer.
    """
    try:
        said = await asyncio.to_thread(_read, f"{monitor_url.rstrip('/')}/varz")
        config = json.loads(said)["jetstream"]["config"]
    except (OSError, ValueError, KeyError) as problem:
        raise WherryError("unavailable", f"{monitor_url} does not tell how NATS is configured: {problem!r}") from None
    if not config.get("sync_always"):
        raise WherryError(
            "stream_mismatch",
            "nats-server does not sync each write: what it acknowledges is lost with the power. "
            "Set `sync_interval: always` in its jetstream block.",
        )


def _read(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise ValueError("it begins with http:// or https://")
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - checked above
        return answer.read()


async def _refuse_losses(bus: Bus, live: Mapping[str, dict[str, Any] | None], recreate: set[str]) -> None:
    made = _made(live.values())
    lost = [name for name, config in live.items() if config is None and name in made]
    left = [_place(one) for one in streams.DURABLES if live[one.stream] is not None and _place(one) in made]
    lost += [place for place in left if await live_config(bus, f"CONSUMER.INFO.{place}") is None]
    if unexpected := [name for name in lost if name not in recreate]:
        raise WherryError(
            "stream_lost",
            f"{', '.join(unexpected)}: made here before, and gone. Restore the broker's data from a backup; or, to "
            "begin anew (a stream empty, a consumer from its stream's first message), set once "
            f"WHERRY_NATS_RECREATE={','.join(lost)}.",
        )


def _made(configs: Iterable[Mapping[str, Any] | None]) -> set[str]:
    known = ((config or {}).get("metadata") or {} for config in configs)
    return {name for metadata in known for name in metadata.get(MADE, "").split(",") if name}


async def _remember(bus: Bus) -> None:
    """Write into each stream what has been made; after the making, so that a crash between is no loss."""
    live = [config for one in streams.STREAMS if (config := await live_config(bus, f"STREAM.INFO.{one.name}"))]
    made = _made(live) | {one.name for one in streams.STREAMS} | {_place(one) for one in streams.DURABLES}
    told = ",".join(sorted(made))
    for config in live:
        metadata = config.get("metadata") or {}
        if metadata.get(MADE) != told:
            await bus.api(f"STREAM.UPDATE.{config['name']}", {**config, "metadata": {**metadata, MADE: told}})


def _place(durable: streams.Durable) -> str:
    return f"{durable.stream}.{durable.name}"


async def _stream(bus: Bus, stream: streams.Stream, live: dict[str, Any] | None, replicas: int) -> str | None:
    wanted, title = stream.config(replicas), f"stream {stream.name}"
    if live is None:
        await bus.api(f"STREAM.CREATE.{stream.name}", wanted)
        return f"created {title}"
    changes = _changes(title, wanted, live, streams.STREAM_MUTABLE)
    if changes:
        await bus.api(f"STREAM.UPDATE.{stream.name}", {**live, **wanted})
    return changes


async def _durable(bus: Bus, durable: streams.Durable, replicas: int) -> str | None:
    wanted, place = durable.config(replicas), _place(durable)
    title = f"consumer {durable.name} of {durable.stream}"
    live = await live_config(bus, f"CONSUMER.INFO.{place}")
    changes = f"created {title}" if live is None else _changes(title, wanted, live, streams.CONSUMER_MUTABLE)
    if changes:
        await bus.api(f"CONSUMER.DURABLE.CREATE.{place}", {"stream_name": durable.stream, "config": wanted})
    return changes


def _changes(title: str, wanted: Mapping[str, Any], live: Mapping[str, Any], mutable: frozenset[str]) -> str | None:
    """Return what has to be changed, in words, or None.

    Raises:
        WherryError: some of it cannot be changed.
    """
    different = streams.differences(wanted, live)
    if fixed := sorted(different.keys() - mutable):
        details = describe({key: different[key] for key in fixed})
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
            if settings.nats_monitor_url:
                await check_sync(settings.nats_monitor_url)
            recreate = [name.strip() for name in settings.nats_recreate.split(",")]
            for sentence in await bootstrap(bus, settings.nats_replicas, recreate):
                _log.info("bootstrapped", done=sentence)
    except WherryError as problem:
        print(problem.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
