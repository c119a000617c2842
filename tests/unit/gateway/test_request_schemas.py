import jsonschema_rs
import pytest

from services.gateway.core.trainings import NewTraining
from services.gateway.core.views_mapping import NewItems
from shared.spec import JobSpec


@pytest.mark.parametrize(
    "spec",
    [
        {"resources": {"memory": "64MiB", "disk": 1024}},
        {"timeouts": {"run": "10m", "pull": 30}},
        {"needs": ["j" + "a" * 25, {"job": "j" + "b" * 25, "on": "any"}]},
        {"inputs": {"data": "dataset:photos", "more": {"source": "artifact:a" + "b" * 25, "unpack": False}}},
        {"kind": "map", "map": {"items": ["one", {"name": "two"}]}},
    ],
)
def test_the_schema_of_a_job_takes_every_form_that_a_job_may_be_sent_in(spec: dict[str, object]) -> None:
    whole = {"runtime": "process", "command": "true", **spec}
    JobSpec.model_validate(whole)
    assert jsonschema_rs.is_valid(JobSpec.model_json_schema(), whole)


def test_other_short_forms_are_described_too() -> None:
    training = {"algorithm": "def train(): ...", "timeouts": "1h"}
    assert NewTraining.model_validate(training).timeouts.run == 3600
    assert jsonschema_rs.is_valid(NewTraining.model_json_schema(), training)
    assert jsonschema_rs.is_valid(NewItems.model_json_schema(), {"items": ["one"]})


def test_what_no_job_may_have_is_not_described() -> None:
    assert not jsonschema_rs.is_valid(JobSpec.model_json_schema(), {"command": "true", "resources": {"memory": []}})
