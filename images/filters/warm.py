"""A warm worker's loop, for your own program too: copy this file, it needs nothing but Python.

    from warm import Failed, work

    def double(item: Item) -> None:
        number = int(item.source.read_text())
        item.target.write_text(str(2 * number))

    work(double)

The program is started once, and its slow preparations are made once. Each item comes as a line of JSON on the standard
input, ``{"item", "name", "in", "out", "params"}``, and is answered by a line on the standard output. When no more
items come the input ends, `work` returns, and so should the program.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Failed(Exception):
    """Nothing can be made of an item. The message says why; it is shown to people."""


@dataclass(frozen=True)
class Item:
    """One item: write a file at `target`, or make a folder of it; its parent folder is there.

    Attributes:
        id: of the item.
        name: that it was given.
        source: its file; None where it has none.
        target: where its result goes.
        params: of the item.
    """

    id: str
    name: str
    source: Path | None
    target: Path
    params: dict[str, Any] = field(default_factory=dict)


def work(handle: Callable[[Item], object], lines: Iterable[str] = sys.stdin) -> None:
    """Call *handle* for each item, and answer: an item for which it raises has failed, and the next one comes."""
    for line in lines:
        order = json.loads(line)
        source = order.get("in")
        item = Item(
            order["item"], order.get("name", ""), Path(source) if source else None, Path(order["out"]),
            order.get("params") or {},
        )  # fmt: skip
        try:
            handle(item)
        except Failed as failed:
            _answer(item, f"failed {failed}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's
            traceback.print_exc()
            _answer(item, f"failed {type(error).__name__}: {error}")
        else:
            _answer(item, "ok")


def _answer(item: Item, words: str) -> None:
    print(f"::item {item.id} {' '.join(words.split())}", flush=True)
