"""The contract between the services: subjects, messages, the bus and the blob protocol. No business rules."""

import sys


def _import_without(module: str, absent: str) -> None:
    """Import *module* as if *absent*, which it takes where it is installed, were not."""
    if absent in sys.modules:
        return
    sys.modules[absent] = None  # pyright: ignore[reportArgumentType]  what `import` takes for "not there"
    try:
        __import__(module)
    finally:
        del sys.modules[absent]


# Each takes a fifth of the time in which a service starts, and no service uses it: WebSockets, and colours.
_import_without("nats.aio.transport", "aiohttp")
_import_without("structlog", "rich")
