from datetime import UTC, datetime

import pytest

from services.gateway.core.explain import ended
from shared.job import Attempt, Failure, Job, Owner
from shared.spec import JobSpec
from shared.states import JOB_TERMINAL, AttemptState, EndReason, JobState

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def job(state: JobState, **fields: object) -> Job:
    whole = {"id": "j1", "owner": Owner(id="u", name="u"), "spec": JobSpec(image="x"), "state": state}
    return Job.model_validate(whole | {"created_at": NOW, "updated_at": NOW} | fields)


@pytest.mark.parametrize("state", sorted(JOB_TERMINAL))
def test_every_end_has_its_words(state: JobState) -> None:
    why = ended(job(state))
    assert (why.state, why.would_start, why.node) == (state.value, False, None)
    assert why.text.endswith("It was never placed on a node.")


def test_an_ended_job_says_how_it_ended_where_and_why_there() -> None:
    attempts = [
        Attempt(number=3, node="n1", state=AttemptState.LOST, placed_at=NOW),
        Attempt(number=4, node="n2", state=AttemptState.FAILED, placed_at=NOW, score={"pack": 0.5, "load": -0.25}),
    ]
    why = ended(job(JobState.FAILED, attempts=attempts, error=Failure(reason=EndReason.OOM, message="Out of memory.")))
    assert (why.node, why.score) == ("n2", {"pack": 0.5, "load": -0.25})
    assert why.text == (
        "It has failed: Out of memory. Its last attempt, number 4, was on node n2. "
        "That node was chosen for its score: load -0.25, pack 0.5."
    )
