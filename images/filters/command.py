"""What the image runs: ``filters grayscale IN OUT`` by hand, and without words whatever wherry wants of it."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from images.filters.pictures import Refused, apply
from images.filters.registry import FILTERS, schema
from images.filters.warm import Failed, Item, work


def main(words: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    given = _parser().parse_args(words)
    if given.schema:
        print(json.dumps(schema()))
        return 0
    mode = "warm" if given.warm else os.environ.get("WHERRY_WORKER", "")
    if given.filter is not None:
        if given.source is None or given.target is None:
            print("filters: a filter wants IN and OUT", file=sys.stderr)
            return 2
        named = {one.name: getattr(given, one.name) for each in FILTERS.values() for one in each.parameters}
        params = {"filter": given.filter} | {name: value for name, value in named.items() if value is not None}
        return _all(given.source, given.target, params)
    params = _json("WHERRY_PARAMS")
    match mode:
        case "warm":
            work(lambda item: _one(item, params))
            return 0
        case "each":
            source = Path(os.environ["WHERRY_IN"])
            return _all(source, Path(os.environ["WHERRY_OUT"]), params | _json("WHERRY_ITEM_PARAMS"))
        case _:
            return _all(
                Path(os.environ.get("WHERRY_INPUTS", "/inputs")),
                Path(os.environ.get("WHERRY_OUTPUTS", "/outputs")),
                params,
            )


def _one(item: Item, params: Mapping[str, Any]) -> None:
    if item.source is None:
        raise Failed("the item has no file")
    try:
        apply(item.source, item.target, {**params, **item.params})
    except Refused as error:
        raise Failed(str(error)) from error


def _all(source: Path, target: Path, params: Mapping[str, Any]) -> int:
    """Filter a file, or all files below a folder; what cannot be is said, and makes the exit code 1."""
    pairs = list(_pairs(source, target))
    failed = 0
    for done, (path, to) in enumerate(pairs, 1):
        try:
            apply(path, to, params)
        except (Refused, OSError) as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
        if source.is_dir():
            print(f"::progress {done / len(pairs):.4f}::{done} of {len(pairs)} pictures", flush=True)
    if not pairs:
        print(f"{source}: there are no files", file=sys.stderr)
    return 1 if failed or not pairs else 0


def _pairs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if not source.is_dir():
        yield source, target / source.name if target.is_dir() else target
        return
    for path in sorted(source.rglob("*")):
        if path.is_file():
            yield path, target / path.relative_to(source)


def _json(variable: str) -> dict[str, Any]:
    path = os.environ.get(variable)
    return json.loads(Path(path).read_text("utf-8")) if path and Path(path).exists() else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "filters",
        description="Filters pictures. Inside wherry no words are needed: the job's parameters say what to do.",
    )
    parser.add_argument("filter", nargs="?", choices=list(FILTERS), help="what to do")
    parser.add_argument("source", nargs="?", type=Path, metavar="IN", help="a picture, or a folder of them")
    parser.add_argument("target", nargs="?", type=Path, metavar="OUT", help="a file, or a folder")
    parser.add_argument("--warm", action="store_true", help="take pictures as lines of JSON on the standard input")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of the parameters")
    for each in FILTERS.values():
        for one in each.parameters:
            what = f"of {each.name}, {one.default} otherwise"
            parser.add_argument(f"--{one.name}", type=one.type, default=None, help=what)
    return parser
