"""Trainings."""

import io
import zipfile

import httpx

from tests.e2e.documented import User
from tests.e2e.endpoints.things import SMALL, Things, case


@case("POST /v1/trainings")
def train(user: User, things: Things) -> None:
    assert things.training
    wrong = user.ask("POST /v1/trainings", json={"algorithm": "def train(:"}, status=422).json()
    assert (wrong["errors"][0]["field"], "line 1" in wrong["errors"][0]["message"]) == ("algorithm", True)


@case("GET /v1/trainings/{training_id}")
def see_a_training(user: User, things: Things) -> None:
    things.stack.wait_end(things.training)
    found = user.ask("GET /v1/trainings/{training_id}", things.training).json()
    assert (found["status"], found["metrics"]) == ("completed", {"loss": 0.25}), found
    model = user.http.get(httpx.URL(found["download_url"]).path)
    with zipfile.ZipFile(io.BytesIO(model.content)) as archive:
        assert archive.read("model.txt") == b"m"


@case("GET /v1/trainings")
def trainings(user: User, things: Things) -> None:
    things.stack.wait_end(things.training)
    found = user.ask("GET /v1/trainings", params={"status": "completed", "owner": "me", "limit": 500}).json()
    assert things.training in [one["training_id"] for one in found["trainings"]]
    user.ask("GET /v1/trainings", params={"status": "sleepy"}, status=422)


@case("DELETE /v1/trainings/{training_id}")
def terminate_a_training(user: User, things: Things) -> None:
    code = "import time\ndef train():\n    time.sleep(600)\n"
    wish = {"algorithm": code, "runtime": "process", "resources": SMALL}
    training = user.ask("POST /v1/trainings", json=wish).json()["training_id"]
    assert user.ask("DELETE /v1/trainings/{training_id}", training, status=202).json()["training_id"] == training
    things.stack.wait_state(training, "cancelled")
    assert user.ask("GET /v1/trainings/{training_id}", training).json()["status"] == "terminated"
