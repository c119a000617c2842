"""The protocol keeps its promises in every history that Hypothesis finds."""

import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.steps import SETTINGS, Protocol

HISTORIES = int(os.environ.get("WHERRY_MODEL_HISTORIES") or (5000 if os.environ.get("CI") else 200))


@pytest.mark.timeout(900 + HISTORIES // 5)
def test_the_protocol_keeps_its_promises_in_every_history() -> None:
    before = Protocol.healed
    run_state_machine_as_test(Protocol, settings=settings(SETTINGS, max_examples=HISTORIES))
    assert Protocol.healed - before >= HISTORIES
