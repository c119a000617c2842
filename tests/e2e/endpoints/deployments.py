"""Deployments, and what is asked of them."""

import subprocess

import pytest

from tests.e2e.documented import User
from tests.e2e.endpoints.things import NODE, SERVING, Things, case
from tests.e2e.stack import ROOT, until, zip_of


@case("POST /v1/deployments")
def deploy(user: User, things: Things) -> None:
    assert things.deployment
    wish = {"name": "sums", "artifact": things.artifact, "runtime": "process", "command": "true"}
    assert user.ask("POST /v1/deployments", json=wish, status=422).json()["code"] == "bad_source"
    wish["artifact"] = user.ask("PUT /v1/artifacts", content=zip_of({"app.py": SERVING})).json()["artifact_id"]
    assert user.ask("POST /v1/deployments", json=wish, status=409).json()["code"] == "name_taken"


@case("GET /v1/deployments")
def deployments(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments", params={"name": "sums", "owner": "me"}).json()["deployments"]
    assert [(one["deployment_id"], one["running"]) for one in found] == [(things.deployment, 1)]


@case("GET /v1/deployments/{deployment}")
def see_a_deployment(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments/{deployment}", things.deployment).json()
    assert (found["name"], found["members"][0]["node"]) == ("sums", NODE)


@case("POST /v1/deployments/{deployment}/predict")
def predict(user: User, things: Things) -> None:
    operation, sent = "POST /v1/deployments/{deployment}/predict", {"instances": [[1, 2], [3, 4]]}
    told = user.ask(operation, things.deployment, json=sent).json()
    assert (told["predictions"], told["deployment_id"]) == ([3, 7], things.deployment)
    secret = {"image_url": "http://169.254.169.254/latest/meta-data"}
    wrong = user.ask(operation, things.deployment, json=secret, status=422).json()
    assert wrong["errors"][0]["field"] == "image_url"
    neither = user.ask(operation, things.deployment, json={}, status=422)
    assert neither.json()["errors"]


@case("GET /v1/deployments/{deployment}/v1/{path}")
def state_by_tensorflow(user: User, things: Things) -> None:
    operation = "GET /v1/deployments/{deployment}/v1/{path}"
    assert user.ask(operation, "sums", "models/model").json() == {"state": "AVAILABLE"}


@case("POST /v1/deployments/{deployment}/v1/{path}")
def predict_by_tensorflow(user: User, things: Things) -> None:
    operation = "POST /v1/deployments/{deployment}/v1/{path}"
    told = user.ask(operation, things.deployment, "models/model:predict", json={"instances": [[5]]})
    assert told.json() == {"predictions": [5]}


@case("GET /v1/deployments/{deployment}/v2/{path}")
def metadata_by_inference(user: User, things: Things) -> None:
    found = user.ask("GET /v1/deployments/{deployment}/v2/{path}", things.deployment, "models/model")
    assert found.json() == {"name": "model"}


@case("POST /v1/deployments/{deployment}/v2/{path}")
def infer_by_inference(user: User, things: Things) -> None:
    operation, sent = "POST /v1/deployments/{deployment}/v2/{path}", {"inputs": [{"data": [1, 1]}]}
    told = user.ask(operation, things.deployment, "models/model/infer", json=sent)
    assert told.json()["outputs"][0]["data"] == [2]


@case("GET /v2")
def what_answers(user: User, _: Things) -> None:
    assert user.ask("GET /v2").json()["name"] == "wherry"


@case("GET /v2/health/live")
def v2_lives(user: User, _: Things) -> None:
    assert user.ask("GET /v2/health/live").json() == {"live": True}


@case("GET /v2/health/ready")
def v2_is_ready(user: User, _: Things) -> None:
    assert user.ask("GET /v2/health/ready").json() == {"ready": True}


@case("GET /v2/models/{model}")
def v2_metadata(user: User, things: Things) -> None:
    assert things.deployment
    assert user.ask("GET /v2/models/{model}", "sums").json() == {"name": "sums"}


@case("GET /v2/models/{model}/{path}")
def v2_model_is_ready(user: User, things: Things) -> None:
    assert things.deployment
    assert user.ask("GET /v2/models/{model}/{path}", "sums", "ready").json() == {"ready": True}


@case("POST /v2/models/{model}/{path}")
def v2_infer(user: User, things: Things) -> None:
    assert things.deployment
    told = user.ask("POST /v2/models/{model}/{path}", "sums", "infer", json={"inputs": [{"data": [1, 2, 3]}]})
    assert told.json()["outputs"][0]["data"] == [6]


@case("PATCH /v1/deployments/{deployment}")
def scale_a_deployment(user: User, things: Things) -> None:
    operation = "PATCH /v1/deployments/{deployment}"
    told = user.ask(operation, things.deployment, json={"replicas": 0}, status=202).json()
    assert told["deployment_id"] == things.deployment
    show = "GET /v1/deployments/{deployment}"
    until(lambda: user.ask(show, things.deployment).json()["status"] == "stopped", "it has no replicas")
    asked = user.ask("POST /v1/deployments/{deployment}/predict", "sums", json={"instances": [[1]]}, status=409)
    assert asked.json()["code"] == "not_running"


@case("DELETE /v1/deployments/{deployment}")
def take_a_deployment_away(user: User, things: Things) -> None:
    operation, show = "DELETE /v1/deployments/{deployment}", "GET /v1/deployments/{deployment}"
    assert user.ask(operation, things.deployment, status=202).json()["name"] == "sums"
    until(lambda: user.ask(show, things.deployment).json()["status"] == "removed", "it is gone")
    assert user.ask(operation, things.deployment).json()["status"] == "removed"


@case("POST /v1/predict")
def predict_in_one_go(user: User, things: Things) -> None:
    wrong = user.ask("POST /v1/predict", json={"instances": [[1]]}, status=422).json()
    assert wrong["errors"][0]["field"] == "model_url"
    wrong = user.ask("POST /v1/predict", json={"instances": [[1]], "model": "there-is-none"}, status=422).json()
    assert wrong["errors"][0]["field"] == "model"
    if things.stack.runtime != "docker":
        pytest.skip("the serving image needs an engine")
    subprocess.run([ROOT / "infra/docker/build-serving.sh"], check=True, stdout=subprocess.DEVNULL)
    from tests.e2e.test_serving import instance, model  # noqa: PLC0415 - its module needs an engine

    stored = things.stack.http.put("/artifacts", content=model("nw", "ne", "sw", "se")).json()["artifact_id"]
    resources = {"cpus": 0.1, "memory": "128MiB", "disk": "64MiB"}
    released = {"name": "endpoint-corners", "artifact_id": stored}
    user.ask("POST /v1/models", json=released)
    order = {"model": "endpoint-corners", "instances": [instance(2)], "resources": resources}
    told = user.ask("POST /v1/predict", json=order)
    things.ends.append(lambda: things.stack.http.delete(f"/deployments/{told.json()['deployment_id']}"))
    assert told.json()["predictions"][0]["class"] == "sw"
