"""Uploads that are cut at random points leave nothing half-stored: `make uploads-long` does the same with 200."""

from pathlib import Path

import pytest

from tests.chaos.uploads import CUTS, WAYS, Plan, run
from tests.integration.gateway_stack import GatewayStack


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_is_listed_after_uploads_were_cut_reads_back_and_nothing_else_is_stored(folder: Path):
    with GatewayStack(folder) as stack:
        found = await run(stack, 15, seed=7)
    assert found.problems == []
    assert found.listed >= len(set(found.accepted.values()))
    assert len(found.cuts) == len(WAYS) * len(CUTS), "every way was cut by everything"


def test_an_upload_names_what_it_sends():
    assert Plan(1, "put", "client", 0, comes_back=False, body=b"").sha256.startswith("e3b0c442")
