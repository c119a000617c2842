"""Which share of the machine the node offers."""

from dataclasses import dataclass

from shared.spec import parse_size


@dataclass(frozen=True, slots=True)
class Share:
    """What was asked for with ``--capacity``; None is all there is. Sizes in bytes."""

    cpus: float | None = None
    memory: int | None = None
    disk: int | None = None
    gpus: int | None = None


def parse_share(text: str) -> Share:
    """Read ``cpus=2,memory=4GiB,disk=50GiB,gpus=1``; empty text offers everything.

    Raises:
        ValueError: an unknown name, or a value that is no amount.
    """
    found: dict[str, float | int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        match name:
            case "cpus":
                found[name] = float(value)
            case "gpus":
                found[name] = int(value)
            case "memory" | "disk":
                size = parse_size(value)
                if not isinstance(size, int):
                    raise ValueError(f"{value!r} is no size")  # noqa: TRY004 - the value is wrong, not its type
                found[name] = size
            case _:
                raise ValueError(f"capacity: {name!r} is unknown; give cpus, memory, disk or gpus")
        if found[name] < 0 or (name == "cpus" and not found[name]):
            raise ValueError(f"capacity: {part!r} is no amount")
    return Share(**found)  # pyright: ignore[reportArgumentType]
