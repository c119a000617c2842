"""What users may write as inputs, and what is recorded of them."""

from datetime import UTC, datetime

import pytest

from services.gateway.core import inputs as i
from shared.job import BlobRef
from shared.requests.accounts import Principal
from shared.requests.artifacts import Artifact
from shared.requests.datasets import Dataset, DatasetVersion
from shared.spec import Input, JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANNA, BERT = Principal(user_id="u1", name="anna"), Principal(user_id="u2", name="bert")
ADMIN = Principal(user_id="u0", name="root", role="admin")
ARTIFACT = "a" + "b" * 25


def dataset(visibility: str = "private") -> Dataset:
    version = DatasetVersion(version=3, artifact_id=ARTIFACT, blob=BlobRef(sha256="0" * 64, size=7), created_at=NOW)
    return Dataset.model_validate(
        {"name": "cats", "owner_id": "u1", "owner_name": "anna", "visibility": visibility, "created_at": NOW,
         "updated_at": NOW, "versions": (version,)}
    )  # fmt: skip


def fields(**inputs: object) -> list[str]:
    spec = JobSpec.model_validate({"image": "x", "inputs": inputs})
    return [problem.field for problem in i.unusable(spec, {"10.0.0.1:80"})]


def test_fields_that_are_not_for_users_are_unknown_to_them():
    source = f"artifact:{ARTIFACT}"
    assert fields(x={"source": source, "artifact": ARTIFACT}) == ["inputs.x.artifact"]
    assert fields(x={"source": source, "sha256": "0" * 64, "size": 0}) == ["inputs.x.sha256", "inputs.x.size"]
    assert fields(x={"source": source, "unpack": False}, y="dataset:cats") == []


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x", "https://127.0.0.1/x", "https://[::1]/", "https://10.0.0.1/", "https://u@example.org/",
     "https://example.org:22/", "http://10.0.0.1:81/", "https://169.254.169.254/"],
)  # fmt: skip
def test_addresses_that_may_not_be_called_are_refused_at_once(url: str):
    assert fields(x=url) == ["inputs.x"]


@pytest.mark.parametrize("url", ["https://example.org/x?y=1", "https://example.org:8443/", "http://10.0.0.1:80/x"])
def test_public_addresses_and_those_that_are_named_pass(url: str):
    assert fields(x=url) == []


def test_names_and_versions_are_read_from_references():
    assert i.dataset_of(Input(source="dataset:cats")) == ("cats", None)
    assert i.dataset_of(Input(source="dataset:cats@12")) == ("cats", 12)
    assert i.dataset_of(Input(source=f"artifact:{ARTIFACT}")) is None
    assert [i.parse_ref(text)[1] for text in ("x@", "x@y", "x@-1", "x@\u0661", "x@1234567890")] == [0] * 5


def test_what_is_recorded_is_pinned_and_keeps_what_the_user_chose():
    given = Input(source="dataset:cats", unpack=False)
    assert i.of_dataset(given, dataset()) == Input(
        source="dataset:cats@3", unpack=False, artifact=ARTIFACT, sha256="0" * 64, size=7
    )
    artifact = Artifact(id=ARTIFACT, owner_id="u1", blob=BlobRef(sha256="1" * 64, size=0), created_at=NOW)
    recorded = i.of_artifact(Input(source=f"artifact:{ARTIFACT}"), artifact)
    assert (recorded.artifact, recorded.sha256, recorded.size, recorded.unpack) == (ARTIFACT, "1" * 64, 0, True)


def test_datasets_are_for_their_owner_for_administrators_and_when_shared_for_all():
    assert [i.may_use(who, dataset()) for who in (ANNA, BERT, ADMIN)] == [True, False, True]
    assert i.may_use(BERT, dataset("shared"))
