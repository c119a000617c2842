"""Deployments as a view of services, and what is asked of them."""

import base64
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from services.gateway.core.deployments import (
    DeploymentChanges,
    NewDeployment,
    changed,
    document,
    name_for,
    only_replicas,
    spec_of,
    status_of,
)
from services.gateway.core.predictions import (
    PredictOrder,
    QuickPredict,
    check,
    deployment_of,
    field_of,
    image_body,
    instances_body,
    predictions_in,
)
from services.gateway.core.problems import from_validation
from services.gateway.shell import deployments as serving
from services.gateway.shell import predictions as asking
from shared.errors import FieldProblem, NotFound, WherryError
from shared.job import GangMember, Job, Owner
from shared.requests.accounts import Principal
from shared.requests.jobs import JobList, JobView
from shared.states import JobState

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ARTIFACT, OTHER = "a" * 26, "a" * 25 + "b"
IMAGE = "wherry/serving:latest"


def wish(**more: Any) -> NewDeployment:
    return NewDeployment.model_validate({"name": "digits", "artifact": ARTIFACT, **more})


def job(state: JobState = JobState.RUNNING, *members: tuple[JobState, int], **more: Any) -> Job:
    service = {key: more.pop(key) for key in ("idle", "replicas") if key in more}
    spec = spec_of(wish(**service), IMAGE)
    replicas = tuple(
        GangMember(job_id=f"j{n}", role="replica", index=n, revision=revision, node="n1", state=one, placed_at=T0)
        for n, (one, revision) in enumerate(members)
    )
    return Job(
        id="j1", owner=Owner(id="u1", name="ann"), spec=spec, state=state, created_at=T0, updated_at=T0,
        members=replicas, **more,
    )  # fmt: skip


def test_a_deployment_is_a_service_with_our_image_unless_another_is_named():
    ours = spec_of(wish(replicas=3, idle="10m"), IMAGE)
    assert (ours.kind, ours.view, ours.image, ours.source) == ("service", "deployment", IMAGE, ARTIFACT)
    assert ours.service
    assert (ours.service.port, ours.service.health, ours.service.replicas) == (8080, "/healthz", 3)
    assert ours.service.idle == 600
    other = spec_of(wish(image="triton", port=8000), IMAGE)
    assert other.service
    assert (other.image, other.service.port, other.service.health) == ("triton", 8000, None)


def test_a_deployment_of_nothing_is_refused_with_what_it_may_be():
    with pytest.raises(ValidationError) as refusal:
        NewDeployment(name="a")
    said = from_validation(refusal.value, NewDeployment).message
    assert said.startswith("Say what is to be served: `artifact`")


def test_a_model_of_the_catalogue_brings_its_image_or_is_served_by_ours():
    assert spec_of(NewDeployment(name="a", model="digits@2"), None).image is None
    assert spec_of(NewDeployment(name="a", model="digits@2"), IMAGE).image == IMAGE


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", ".a", "a" * 129])
def test_a_name_that_is_no_part_of_a_url_is_refused(name: str):
    with pytest.raises(ValidationError):
        wish(name=name)


def test_changes_leave_the_rest_as_it_was():
    before = spec_of(wish(replicas=2, env={"A": "1"}, idle=60), IMAGE)
    after = changed(before, DeploymentChanges(artifact=OTHER, concurrency=3), IMAGE, ours=IMAGE)
    assert (after.source, after.env, after.image, after.view) == (OTHER, {"A": "1"}, IMAGE, "deployment")
    assert after.service
    assert (after.service.replicas, after.service.idle, after.service.concurrency) == (2, 60, 3)
    awake = changed(before, DeploymentChanges.model_validate({"idle": None}), IMAGE, ours=IMAGE)
    assert awake.service
    assert awake.service.idle is None


def test_another_model_takes_the_place_of_the_one_before():
    filed = spec_of(NewDeployment(name="a", model="digits@2"), IMAGE)
    as_zip = changed(filed, DeploymentChanges(artifact=OTHER), IMAGE, ours=IMAGE)
    assert (as_zip.model, as_zip.source, as_zip.image) == (None, OTHER, IMAGE)
    again = changed(as_zip, DeploymentChanges(model="letters"), None, ours=IMAGE)
    assert (again.model, again.source, again.image) == ("letters", None, None)


def test_another_program_says_otherwise_that_it_is_well():
    def health(spec: Any, brought: str | None, **changes: Any) -> str | None:
        after = changed(spec, DeploymentChanges.model_validate(changes), brought, ours=IMAGE)
        assert after.service
        return after.service.health

    served_by_ours = spec_of(wish(), IMAGE)
    assert health(served_by_ours, None, model="letters") is None
    assert health(served_by_ours, IMAGE, model="letters") == health(served_by_ours, IMAGE, artifact=OTHER) == "/healthz"
    assert health(served_by_ours, IMAGE, image="mine") is None
    assert health(served_by_ours, None, model="letters", health="/ok") == "/ok"
    own = spec_of(NewDeployment.model_validate({"name": "a", "model": "letters@1", "health": "/up"}), None)
    own = own.model_copy(update={"image": "registry/letters@sha256:1"})  # as it is recorded
    assert health(own, None, model="letters@2") == "/up"
    assert health(own, IMAGE, model="digits") == "/healthz"


def test_only_a_number_of_replicas_is_no_new_revision():
    assert only_replicas(DeploymentChanges(replicas=0))
    assert not only_replicas(DeploymentChanges(replicas=2, port=80))
    assert not only_replicas(DeploymentChanges())
    assert not only_replicas(DeploymentChanges.model_validate({"replicas": None}))


@pytest.mark.parametrize(
    ("it", "status"),
    [
        (job(JobState.QUEUED), "starting"),
        (job(JobState.STARTING, (JobState.STARTING, 0)), "starting"),
        (job(JobState.RUNNING, (JobState.RUNNING, 0), (JobState.QUEUED, 0)), "running"),
        (job(JobState.RUNNING, (JobState.RUNNING, 0), (JobState.STARTING, 1), revision=1), "updating"),
        (job(JobState.QUEUED, replicas=0), "stopped"),
        (job(JobState.QUEUED, idle=60).model_copy(update={"replicas": 0}), "idle"),
        (job(JobState.FAILED), "failed"),
        (job(JobState.CANCELLED), "removed"),
    ],
)  # fmt: skip
def test_the_status_word(it: Job, status: str):
    assert status_of(it) == status
    shown = document(it, lambda path: f"http://here{path}")
    assert (shown.status, shown.predict_url) == (status, "http://here/v1/deployments/j1/predict")
    assert shown.running == sum(one.state is JobState.RUNNING for one in it.members)


def test_a_deployment_for_one_question_has_a_name_of_what_it_is_made_of():
    first = QuickPredict(model_url="https://a/b.zip", image_url="https://c/1.png")
    again = QuickPredict(model_url="https://a/b.zip", image_url="https://c/2.png", width=3)
    other = QuickPredict(model_url="https://a/c.zip", image_url="https://c/1.png")
    names = [name_for(deployment_of(one, "x")) for one in (first, again, other)]
    assert names[0] == names[1] != names[2]
    spec = spec_of(deployment_of(first, names[0]), IMAGE)
    assert spec.inputs["model"].source == "https://a/b.zip"
    assert spec.service
    assert spec.service.idle == 300


def test_what_a_model_is_sent():
    order = PredictOrder(instances=[[1, 2]], signature_name="s", width=1)
    assert json.loads(instances_body(order)) == {"instances": [[1, 2]], "signature_name": "s", "width": 1}
    sent = json.loads(image_body(b"png", PredictOrder(width=8, height=4)))
    assert sent == {"instances": [{"b64": base64.b64encode(b"png").decode()}], "width": 8, "height": 4}


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (400, b'{"error": "too wide"}', "model_refused", "too wide"),
        (404, b"<html>", "model_refused", "it answers 404"),
        (500, b'{"predictions": []}', "model_failed", "500"),
        (200, b"{}", "model_failed", "without predictions"),
        (200, b"no json", "model_failed", "without predictions"),
        (200, b"[1]", "model_failed", "without predictions"),
    ],
)
def test_an_answer_that_is_none_is_told_in_the_models_words(status: int, body: bytes, code: str, words: str):
    with pytest.raises(WherryError, match=words) as refused:
        predictions_in(status, body)
    assert refused.value.code == code


def test_predictions_are_handed_on_as_they_are():
    assert predictions_in(200, b'{"predictions": [[0.5, 0.5], {"a": 1}]}') == [[0.5, 0.5], {"a": 1}]


async def _sent(*fields: tuple[str, str]) -> AsyncGenerator[bytes, None]:
    for name, text in fields:
        yield f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
    yield b"--b--\r\n"


@pytest.mark.parametrize("text", ["9" * 8000, "x", "-1", "0", "²"])
async def test_a_size_in_a_form_that_is_none_is_named(text: str):
    with pytest.raises(WherryError) as refusal:
        await asking.form(PredictOrder, "multipart/form-data; boundary=b", _sent(("width", text)), 1000)
    assert [one.field for one in refusal.value.fields] == ["width"]


def test_of_what_a_program_says_of_a_refusal_no_more_is_told_than_anybody_reads():
    with pytest.raises(WherryError) as refusal:
        predictions_in(400, json.dumps({"error": "x" * 1_000_000}).encode())
    assert len(refusal.value.message) < 3000


@pytest.mark.parametrize(
    ("order", "has_image"),
    [({}, False), ({"instances": [1]}, True), ({"instances": [1], "image_url": "https://example.org/a.png"}, False)],
)
def test_there_is_one_thing_to_ask_a_model_with(order: dict[str, Any], has_image: bool):  # noqa: FBT001
    with pytest.raises(WherryError) as refusal:
        check(PredictOrder.model_validate(order), has_image=has_image)
    assert [one.field for one in refusal.value.fields] == ["instances"]
    assert "one of this, `image_url` and an uploaded `image`" in refusal.value.message


async def test_nothing_is_deployed_for_an_order_that_asks_nothing():
    order = QuickPredict.model_validate({"model_url": "https://example.org/model.zip"})
    with pytest.raises(WherryError) as refusal:
        await asking.quick(cast("Any", None), cast("Any", None), order, None)
    assert [one.field for one in refusal.value.fields] == ["instances"]


def test_a_model_of_the_catalogue_is_asked_in_one_go_too():
    wish = deployment_of(QuickPredict(model="digits@2", instances=[1]), "predict")
    assert (wish.model, wish.artifact, wish.inputs) == ("digits@2", None, None)


async def test_which_model_is_asked_is_said_in_one_way():
    order = QuickPredict(model="digits", artifact="a" * 26, instances=[1])
    with pytest.raises(WherryError) as refusal:
        await asking.quick(cast("Any", None), cast("Any", None), order, None)
    assert [one.field for one in refusal.value.fields] == ["model_url"]


def test_what_is_wrong_with_a_models_address_is_told_of_the_field_that_has_it():
    assert field_of(FieldProblem(field="inputs.model", message="no")).field == "model_url"
    assert field_of(FieldProblem(field="resources.cpus", message="no")).field == "resources.cpus"


async def test_a_name_whose_former_deployment_is_forgotten_is_that_of_the_new_one():
    new = job()

    async def gone(_: str) -> Job:
        raise NotFound("There is no such job.")

    async def ask(*_: Any) -> JobList:
        return JobList(jobs=(JobView(job=new, seq=1),))

    names = {("u1", "digits"): "jold"}
    gateway = cast("Any", SimpleNamespace(deployments=names, serving=SimpleNamespace(job=gone), ask=ask))
    principal = Principal(user_id="u1", name="ann", role="user")
    assert await serving.find(gateway, principal, "digits") == new
    assert names == {("u1", "digits"): new.id}
