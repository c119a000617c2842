"""The protocol keeps its promises in every history that Hypothesis finds."""

import os

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.steps import SETTINGS, Protocol

ASKED_FOR = os.environ.get("WHERRY_MODEL_HISTORIES")
HISTORIES = int(ASKED_FOR or (5000 if os.environ.get("CI") else 200))


@pytest.mark.timeout(900 + HISTORIES // 5)
def test_the_protocol_keeps_its_promises_in_every_history() -> None:
    before = Protocol.healed
    # The same histories for the same code, so that nobody's change fails for what is older; others are searched for
    # where their number is asked for (`make sim-long`).
    wanted = settings(SETTINGS, max_examples=HISTORIES, derandomize=ASKED_FOR is None)
    run_state_machine_as_test(Protocol, settings=wanted)
    assert Protocol.healed - before >= HISTORIES
