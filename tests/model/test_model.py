"""The protocol holds in every history that Hypothesis finds; without any one of its mechanisms it does not."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test

from tests.model.mutants import MUTANTS, Mutation
from tests.model.steps import Protocol

HISTORIES = int(os.environ.get("WHERRY_MODEL_HISTORIES") or (5000 if os.environ.get("CI") else 300))
STEPS = 50
#: Every mutant is noticed within this many histories; they are the same ones each time.
MUTANT_HISTORIES = 6000
SHRINK_S = 5
_SETTINGS = settings(
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
)


@pytest.mark.timeout(900)
def test_the_protocol_keeps_its_promises_in_every_history() -> None:
    run_state_machine_as_test(Protocol, settings=settings(_SETTINGS, max_examples=HISTORIES))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_without_a_mechanism_a_promise_is_broken(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", SHRINK_S)
    mutate(monkeypatch)
    with pytest.raises(Exception) as broken:  # noqa: PT011 - also a core that is no longer sound
        run_state_machine_as_test(Protocol, settings=settings(_SETTINGS, max_examples=MUTANT_HISTORIES, derandomize=True))
    print(f"{mutate.__name__}: {broken.value}")
    print("\n".join(getattr(broken.value, "__notes__", ())))
