"""The model is worth something only if it notices: without any one of its mechanisms the protocol breaks a promise."""

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.mutants import MUTANTS, Mutation
from tests.model.steps import SETTINGS, Protocol

#: Each is noticed within this many histories; they are the same ones every time.
HISTORIES = 4000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_without_it_a_promise_is_broken(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    # That it is noticed is enough: to find the shortest story of each takes longer than to find one.
    wanted = settings(SETTINGS, max_examples=HISTORIES, derandomize=True, phases=(Phase.generate,))
    with pytest.raises(AssertionError) as broken:
        run_state_machine_as_test(Protocol, settings=wanted)
    print(f"{mutate.__name__}: {broken.value}")
    print("\n".join(getattr(broken.value, "__notes__", ())))
