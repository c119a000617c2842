"""Make the broker's streams and consumers what `shared.streams` says: ``python -m infra.bootstrap`` as the user operator.

What is missing is made, what may change is changed, and what may not is refused with what to do. Whether the running server
syncs every write cannot be asked over this connection; the configuration of the local stack and of compose set it.
"""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from shared import observe, streams
from shared.bus import Bus
from shared.channels import Service
from shared.errors import NotFound, WherryError
from shared.settings import ServiceSettings

_log = observe.logger("bootstrap")


class BootstrapSettings(ServiceSettings):
    """How many servers keep each stream: 1 for one server, 3 for a cluster."""

    nats_replicas: int = 1


async def bootstrap(bus: Bus, replicas: int = 1) -> None:
    """Create and compare all streams and durables.

    Raises:
        WherryError: code ``stream_mismatch``: the server has one that differs in what cannot be changed.
    """
    for stream in streams.STREAMS:
        await _ensure(
            bus,
            stream.config(replicas),
            f"STREAM.INFO.{stream.name}",
            f"STREAM.CREATE.{stream.name}",
            f"STREAM.UPDATE.{stream.name}",
            streams.STREAM_MUTABLE,
        )
    for durable in streams.DURABLES:
        place = f"{durable.stream}.{durable.name}"
        config = durable.config(replicas)
        create = f"CONSUMER.DURABLE.CREATE.{place}"
        await _ensure(
            bus,
            config,
            f"CONSUMER.INFO.{place}",
            create,
            create,
            streams.CONSUMER_MUTABLE,
            wrap=lambda config, stream=durable.stream: {"stream_name": stream, "config": config},
        )


async def _ensure(
    bus: Bus,
    wanted: Mapping[str, Any],
    info: str,
    create: str,
    update: str,
    mutable: frozenset[str],
    wrap: Any = dict,
) -> None:
    name = create.split(".", 2)[-1]
    try:
        live = (await bus.api(info, {}))["config"]
    except NotFound:
        await bus.api(create, wrap(dict(wanted)))
        _log.info("created", name=name)
        return
    different = streams.differences(wanted, live)
    if fixed := set(different) - mutable:
        details = "; ".join(f"{key} is {different[key][1]!r}, not {different[key][0]!r}" for key in sorted(fixed))
        raise WherryError(
            "stream_mismatch",
            f"{name} on the server cannot become what this version needs: {details}. Back it up and remove it.",
        )
    if different:
        await bus.api(update, wrap({**live, **wanted}))
        _log.info("updated", name=name, settings=sorted(different))


async def main() -> int:
    """Connect as the environment says and bootstrap; return the exit code."""
    settings = BootstrapSettings()
    observe.configure(settings, "bootstrap")
    # The set-up acts as the core of the system: CTRL is the account of its user.
    async with Bus.connect(settings, Service.SCHEDULER, purpose="bootstrap") as bus:
        try:
            await bootstrap(bus, settings.nats_replicas)
        except WherryError as problem:
            print(problem.message, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
