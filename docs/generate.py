"""Write the documents that are made from code, or with --check say whether the committed ones are current.

python docs/generate.py [--check]
"""

import argparse
import difflib
import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from services.gateway.app import create_app  # noqa: E402 - found through the path above
from services.gateway.settings import GatewaySettings  # noqa: E402
from services.scheduler.core.crew import PARENT_MOVES  # noqa: E402
from services.scheduler.core.lifecycle import ATTEMPT_MOVES, MOVES  # noqa: E402
from services.scheduler.core.nodes import CONDITION_MOVES, DUTY_MOVES  # noqa: E402
from shared.docs import asyncapi, state_diagram, subjects_page  # noqa: E402
from shared.permissions import accounts_reference  # noqa: E402
from shared.states import AttemptState, JobState, NodeCondition, NodeDuty  # noqa: E402

#: Nodes of the reference configuration: compose's one node.
NODES = ("local",)


def documents() -> dict[str, str]:
    """Return every made document by its path."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return {
        "docs/asyncapi.json": _json(asyncapi(version)),
        "docs/openapi.json": _json(create_app(GatewaySettings()).openapi()),
        "docs/subjects.md": subjects_page(),
        "docs/states.md": states_page(),
        "infra/nats/permissions.conf": accounts_reference(NODES),
    }


def states_page() -> str:
    """Return the page with the states of jobs, attempts and nodes."""
    return "\n".join(
        [
            "<!-- Made by docs/generate.py; do not edit. -->",
            "# States",
            "",
            "The legal moves, from `lifecycle.py`, `crew.py` and `nodes.py` in `services/scheduler/core`. A label is",
            "what happened. Reports may be lost or overtake each other, so a later one is taken without the earlier.",
            "",
            "## Job",
            "",
            state_diagram(MOVES, JobState.QUEUED),
            "",
            "## Map job or service",
            "",
            "It holds nothing itself; its members are jobs, as above. It is queued as long as none of them runs.",
            "",
            state_diagram(PARENT_MOVES, JobState.QUEUED),
            "",
            "## Attempt",
            "",
            state_diagram(ATTEMPT_MOVES, AttemptState.PLACED),
            "",
            "## Node: is it heard?",
            "",
            state_diagram(CONDITION_MOVES, NodeCondition.ONLINE),
            "",
            "## Node: does it get work?",
            "",
            state_diagram(DUTY_MOVES, NodeDuty.ACTIVE),
            "",
        ]
    )


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description="Documents made from code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a document is not current")
    check = parser.parse_args().check
    stale = 0
    for name, text in documents().items():
        file = ROOT / name
        old = file.read_text() if file.exists() else ""
        if old == text:
            continue
        stale += 1
        if check:
            lines = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "made", lineterm="")
            print("\n".join(lines))
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            print("wrote", name)
    if check and stale:
        print(f"{stale} documents are not current: run `make docs`")
    return 1 if check and stale else 0


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
