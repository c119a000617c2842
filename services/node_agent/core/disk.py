"""How much disk an attempt uses, and what is said when it is more than it was promised."""

from collections.abc import Iterable, Mapping
from typing import Any

from services.node_agent.core.container import Key, key_of
from shared.job import Failure
from shared.states import EndReason

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def used_by_attempts(engine: Mapping[str, Any]) -> dict[Key, int]:
    """Return the bytes that programs have written, from an engine's answer to ``GET /system/df``.

    What counts is the sum of file lengths, each file once, in all volumes that the program may write to (those that
    its image declares too), and the container's own layer. What it only reads (inputs, parameters) does not count.
    """
    sizes = {one["Name"]: _size(one.get("UsageData")) for one in engine.get("Volumes") or ()}
    used: dict[Key, int] = {}
    for one in engine.get("Containers") or ():
        labels = one.get("Labels") or {}
        key = key_of(labels)
        if key is not None and labels.get("wherry.role") == "job":
            used[key] = max(0, one.get("SizeRw") or 0) + _written(one.get("Mounts") or (), sizes)
    return used


def _written(mounts: Iterable[Mapping[str, Any]], sizes: Mapping[str, int]) -> int:
    return sum(sizes.get(one.get("Name", ""), 0) for one in mounts if one.get("Type") == "volume" and one.get("RW"))


def _size(usage: Mapping[str, Any] | None) -> int:
    return max(0, (usage or {}).get("Size") or 0)  # -1: the engine does not know


def over_disk(used: int, promised: int) -> Failure:
    """Return how an attempt ends that uses more than *promised*; both in bytes."""
    message = (
        f"The program has written {in_units(used)} and was promised {in_units(promised)} of disk: "
        "ask for more with resources.disk, or leave less behind."
    )
    return Failure(reason=EndReason.DISK, message=message)


def in_units(size: int) -> str:
    """Return a number of bytes for people."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} bytes" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
