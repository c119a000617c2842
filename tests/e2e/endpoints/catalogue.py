"""Models, their runs, evaluations and fine-tune requests."""

from tests.e2e.documented import User
from tests.e2e.endpoints.things import MODEL, SMALL, Things, case


@case("POST /v1/models")
def release_a_model(user: User, things: Things) -> None:
    assert things.model
    assert user.ask("POST /v1/models", json=MODEL, status=200).json()["is_new"] is False
    made = user.ask("POST /v1/models", json={"name": things.model, "job_id": things.ended}, status=201).json()
    assert (made["version"], made["versions"][0]["lineage"]["metrics"]) == (2, {"loss": 0.5})
    user.ask("POST /v1/models", json={"name": things.model, "job_id": things.running}, status=409)
    private = user.ask("POST /v1/models", json={"name": "other", "image": "127.0.0.1:9/a/b:c"}, status=422)
    assert private.json()["code"] == "registry_refused"


@case("GET /v1/models")
def models(user: User, things: Things) -> None:
    found = user.ask("GET /v1/models", params={"search": "endpoint-model"}).json()["models"]
    assert [(one["name"], one["description"]) for one in found] == [(things.model, "Does nothing.")]


@case("POST /v1/models/sync")
def read_a_registry(user: User, things: Things) -> None:
    registry = things.registry
    registry.push("endpoints/one", {"io.wherry.model.description": "Of a registry."})
    found = user.ask("POST /v1/models/sync", json={"registry": registry.host, "prefix": "endpoints/"}).json()
    assert (found["added"], found["failed"], found["error"]) == (["endpoints.one@1"], [], "")
    refused = user.ask("POST /v1/models/sync", json={"registry": "127.0.0.1:9"}).json()
    assert "may not be asked" in refused["error"]


@case("GET /v1/models/sync/{run_id}")
def see_the_reading_of_a_registry(user: User, things: Things) -> None:
    begun = user.ask("POST /v1/models/sync", json={"registry": things.registry.host, "prefix": "endpoints/"}).json()
    assert user.ask("GET /v1/models/sync/{run_id}", begun["run_id"]).json()["ended_at"] == begun["ended_at"]


@case("GET /v1/models/{ref}")
def see_a_model(user: User, things: Things) -> None:
    found = user.ask("GET /v1/models/{ref}", f"{things.model}@1").json()
    assert (found["version"], found["params"]["properties"]["rate"]["default"]) == (1, 0.5)
    user.ask("GET /v1/models/{ref}", f"{things.model}@99", status=404)


@case("PATCH /v1/models/{name}")
def describe_a_model(user: User, things: Things) -> None:
    sent = {"quality": {"metric": "accuracy", "limit": 0.5}}
    found = user.ask("PATCH /v1/models/{name}", things.model, json=sent).json()
    assert (found["quality"]["metric"], found["quality"]["limit"]) == ("accuracy", 0.5)


@case("POST /v1/models/{ref}/runs")
def run_a_model(user: User, things: Things) -> None:
    operation, sent = "POST /v1/models/{ref}/runs", {"params": {"rate": 1}, "resources": SMALL}
    job_id = user.ask(operation, f"{things.model}@1", json=sent, status=202).json()["job_id"]
    things.ends.append(lambda: things.stack.http.post(f"/jobs/{job_id}/cancel"))
    spec = user.ask("GET /v1/jobs/{job_id}", job_id).json()["spec"]
    assert (spec["model"], spec["params"]) == (f"{things.model}@1", {"rate": 1})
    wrong = user.ask(operation, f"{things.model}@1", json={"params": {"rate": "much"}}, status=422).json()
    assert wrong["errors"][0]["field"] == "params.rate"


@case("POST /v1/models/{name}/evaluations")
def measure_a_model(user: User, things: Things) -> None:
    operation = "POST /v1/models/{name}/evaluations"
    kept = user.ask(operation, things.model, json={"version": 1, "metrics": {"accuracy": 0.9}}, status=201).json()
    assert (kept["version"], kept["metrics"]) == (1, {"accuracy": 0.9})
    user.ask(operation, things.model, json={"metrics": {}}, status=422)


@case("GET /v1/models/{name}/evaluations")
def quality_of_a_model(user: User, things: Things) -> None:
    sent = {"version": 1, "metrics": {"accuracy": 0.7}}
    user.ask("POST /v1/models/{name}/evaluations", things.model, json=sent)
    found = user.ask("GET /v1/models/{name}/evaluations", things.model, params={"version": 1}).json()
    assert found["evaluations"][0]["metrics"] == {"accuracy": 0.7}


@case("POST /v1/models/{name}/fine-tune-requests")
def ask_the_experts(user: User, things: Things) -> None:
    assert things.fine_tune
    operation = "POST /v1/models/{name}/fine-tune-requests"
    wrong = user.ask(operation, things.model, json={"message": "Better!", "dataset": "there-is-none"}, status=422)
    assert wrong.json()["errors"][0]["field"] == "dataset"


@case("GET /v1/models/{name}/fine-tune-requests")
def what_experts_are_asked(user: User, things: Things) -> None:
    assert things.fine_tune
    found = user.ask("GET /v1/models/{name}/fine-tune-requests", things.model, params={"state": "open"}).json()
    assert [one["id"] for one in found["requests"]] == [things.fine_tune]


@case("POST /v1/models/{name}/fine-tune-requests/{request_id}/decline")
def decline(user: User, things: Things) -> None:
    operation = "POST /v1/models/{name}/fine-tune-requests/{request_id}/decline"
    told = user.ask(operation, things.model, things.fine_tune, json={"why": "It is good enough."}).json()
    assert (told["state"], told["answer"]) == ("declined", "It is good enough.")
    user.ask(operation, things.model, things.fine_tune, json={"why": "Again."}, status=409)


@case("DELETE /v1/models/{ref}")
def remove_a_model(user: User, things: Things) -> None:
    wish = {"name": "endpoint-shortlived", "artifact_id": things.artifact}
    user.ask("POST /v1/models", json=wish)
    user.ask("DELETE /v1/models/{ref}", "endpoint-shortlived", status=204)
    user.ask("GET /v1/models/{ref}", "endpoint-shortlived", status=404)
