"""What the user guide lists is all there is, and nothing more."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from client.wherry.cli import app
from infra.bootstrap import BootstrapSettings
from services.gateway.core.problems import _KNOWN
from services.gateway.settings import GatewaySettings
from services.node_agent.settings import AgentSettings
from services.notifier.settings import NotifierSettings
from services.scheduler.settings import SchedulerSettings
from services.storage.settings import StorageSettings
from shared.spec import JobSpec
from shared.states import EndReason, PendingCode

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "user-guide.md").read_text()
SETTINGS = (GatewaySettings, SchedulerSettings, StorageSettings, NotifierSettings, AgentSettings, BootstrapSettings)
VARIABLES = sorted({f"WHERRY_{name.upper()}" for kind in SETTINGS for name in kind.model_fields})
#: Not answers to users: faults of ours that they see as `internal`.
INNER = {"bus_forbidden"}


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_setting_is_in_the_guide(variable: str):
    if variable.endswith("_METRICS_PORT"):
        assert "`WHERRY_<SERVICE>_METRICS_PORT`" in GUIDE
        return
    short = [f"…{variable[at:]}`" for at in range(len(variable)) if variable[at] == "_"]  # `…_LEADER_RENEW_S`
    assert f"`{variable}`" in GUIDE or any(text in GUIDE for text in short)


def test_every_variable_in_the_guide_exists():
    root = Path(__file__).resolve().parents[2]
    ours = [top for top in root.glob("[!.]*/") if top.name != "tests"]  # in the others files come and go
    code = [*(path for top in ours for path in top.rglob("*.py")), *root.glob("docker-compose.yml")]
    text = "\n".join(path.read_text() for path in code)
    written = set(re.findall(r"WHERRY_[A-Z_]+[A-Z]", GUIDE)) - set(VARIABLES) - {"WHERRY_PYTHON_IMAGE"}
    assert sorted(name for name in written if name not in text) == []


def test_every_code_of_a_problem_is_in_the_guide():
    assert sorted(code for code in _KNOWN if f"`{code}`" not in GUIDE and code not in INNER) == []


def test_every_command_and_its_exit_codes_are_in_the_guide():
    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    table = GUIDE.partition("### The `wherry` command")[2].partition("\n### ")[0]
    assert sorted(name for name in commands if not re.search(rf"`{name}\b", table)) == []


def test_every_field_of_a_spec_and_every_reason_to_wait_is_in_the_guide():
    assert sorted(name for name in JobSpec.model_fields if f"`{name}`" not in GUIDE) == []
    assert sorted(code for code in PendingCode if f"`{code}`" not in GUIDE) == []


def test_every_reason_of_an_end_has_a_row_that_says_what_to_do():
    table = GUIDE.partition("### Why a job ended")[2].partition("\n### ")[0]
    rows = [re.findall(r"[a-z_]+", line.split("|")[1]) for line in table.splitlines() if line.startswith("| ")]
    of_items = {EndReason.ITEM_FAILED, EndReason.ITEM_TIMEOUT}  # not of a job: in the row of items_failed
    assert sorted(set(EndReason) - of_items - {word for row in rows for word in row}) == []
