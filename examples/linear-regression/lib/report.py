"""How a program talks to wherry: lines on standard output, parameters and outputs in named places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def progress(fraction: float, message: str) -> None:
    """Say how far the job is, from 0 to 1."""
    print(f"::progress {fraction:.3f}::{message}")


def metric(name: str, value: float, step: int) -> None:
    """Report one point of a series."""
    print(f"::metric {name}={value:.6g} step={step}")


def params() -> dict[str, Any]:
    """Return the job's parameters: WHERRY_PARAMS names a JSON file, or is the JSON itself."""
    given = os.environ.get("WHERRY_PARAMS", "").strip()
    if not given:
        return {}
    return json.loads(given if given.startswith("{") else Path(given).read_text(encoding="utf-8"))


def outputs() -> Path:
    """Return the folder whose content is kept; outside of wherry, ./outputs."""
    folder = Path(os.environ.get("WHERRY_OUTPUTS") or "outputs")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, value: object) -> None:
    """Write *value* as readable JSON."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
