"""The catalogue over HTTP on real servers: models of a real registry, runs, quality, and requests to experts."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.notifier.core.texts import mail
from services.notifier.core.texts import subject as mail_subject
from services.storage.adapters.registry import Registry
from services.storage.core.registry import LABEL_DESCRIPTION, LABEL_NAME, LABEL_PARAMS, parse
from shared.channels import TELL, Service
from shared.errors import WherryError
from shared.events import DeliveryRequested
from shared.model import Empty
from tests.integration.gateway_stack import ADMIN, GatewayStack
from tests.integration.registry_server import RegistryServer

PASSWORD = "a password of anna 1"
#: bcrypt of "open sesame".
OPEN_SESAME = "$2y$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy"
SCHEMA = {
    "type": "object",
    "properties": {
        "epochs": {"type": "integer", "minimum": 1, "default": 3},
        "rate": {"type": "number", "exclusiveMinimum": 0},
        "net": {"type": "object", "properties": {"layers": {"type": "integer", "maximum": 9}}},
    },
    "required": ["rate"],
    "additionalProperties": False,
}
LABELS = {LABEL_DESCRIPTION: "Reads digits.", LABEL_PARAMS: json.dumps(SCHEMA)}


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[RegistryServer]:
    with RegistryServer(folder / "registry") as running:
        yield running


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, nor can while the tests run: it is held."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str, registry: RegistryServer, closed_port: int) -> Iterator[GatewayStack]:
    class Stack(GatewayStack):
        def start_storage(self, **env: str) -> None:
            places = f"{registry.host},127.0.0.1:{closed_port}"
            super().start_storage(WHERRY_REGISTRIES=places, **env)

    (folder / "stack").mkdir()
    with Stack(folder / "stack", mongo_url=mongo_server) as running:
        yield running


@pytest.fixture(scope="module")
def admin(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        for user, role in (("anna", "expert"), ("eve", "expert"), ("bert", "user")):
            body = {"name": user, "password": PASSWORD, "role": role, "email": f"{user}@example.com"}
            client.post("/users", json=body).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("anna", PASSWORD)) as client:
        yield client


@pytest.fixture(scope="module")
def bert(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("bert", PASSWORD)) as client:
        yield client


@pytest.fixture(scope="module")
def digits(anna: httpx.Client, registry: RegistryServer) -> dict[str, Any]:
    registry.push("team/digits", LABELS, layers=2)
    answer = anna.post("/models", json={"name": "digits", "image": f"{registry.host}/team/digits"})
    assert answer.status_code == 201, answer.text
    return answer.json()


def faults(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {one["field"]: one["message"] for one in answer.json()["errors"]}


def test_a_model_is_what_the_labels_of_its_image_say_and_nothing_is_pulled(
    digits: dict[str, Any], registry: RegistryServer, bert: httpx.Client
):
    shown = bert.get("/models/digits").json()
    assert {name: shown[name] for name in ("name", "version", "description", "params", "owner")} == {
        "name": "digits", "version": 1, "description": "Reads digits.", "params": SCHEMA, "owner": "anna",
    }  # fmt: skip
    assert shown["image"] == f"{registry.host}/team/digits@{shown['image_digest']}"
    assert shown["versions"][0]["size"] > 100
    assert digits["is_new"] is True
    assert [one["name"] for one in bert.get("/models", params={"search": "READS digit"}).json()["models"]] == ["digits"]
    assert bert.get("/models", params={"search": "nothing"}).json()["models"] == []


def test_the_same_image_is_the_same_version_and_another_one_the_next(anna: httpx.Client, registry: RegistryServer):
    reference = f"{registry.host}/team/grows:1"
    digest = registry.push("team/grows", LABELS, "1")
    first = anna.post("/models", json={"name": "grows", "image": reference})
    again = anna.post("/models", json={"name": "grows", "image": reference})
    assert (first.status_code, again.status_code) == (201, 200)
    assert (again.json()["version"], again.json()["is_new"]) == (1, False)
    other_name = anna.post("/models", json={"name": "grows", "image": f"{registry.host}/team/grows@{digest}"})
    assert (other_name.json()["version"], other_name.json()["is_new"]) == (1, False)
    registry.push("team/grows", LABELS | {"other": "label"}, "1")
    second = anna.post("/models", json={"name": "grows", "image": reference}).json()
    assert (second["version"], second["version_count"]) == (2, 2)
    assert anna.get("/models/grows@1").json()["image"] == first.json()["image"]
    assert anna.delete("/models/grows@2").status_code == 204
    assert anna.get("/models/grows@2").status_code == 404
    assert anna.get("/models/grows").json()["version"] == 1
    assert anna.post("/models", json={"name": "grows", "image": reference}).json()["version"] == 3
    assert anna.delete("/models/grows").status_code == 204
    assert anna.get("/models/grows").status_code == 404


def test_a_run_has_the_image_by_its_digest_and_parameters_that_fit(
    digits: dict[str, Any], bert: httpx.Client, stack: GatewayStack
):
    with stack.client(stack.login("bert", PASSWORD)) as http:
        stored = http.post("/datasets", data={"name": "berts"}, files={"file": ("d.csv", b"1,2")})
        stored.raise_for_status()
    answer = bert.post("/models/digits/runs", json={"dataset": "berts", "params": {"rate": 0.1}, "labels": ["mine"]})
    assert answer.status_code == 202, answer.text
    job = bert.get(f"/jobs/{answer.json()['job_id']}").json()
    assert job["spec"]["image"] == digits["image"]
    assert job["spec"]["model"] == "digits@1"
    assert job["spec"]["params"] == {"rate": 0.1, "epochs": 3}
    assert job["spec"]["inputs"]["dataset"]["source"] == "dataset:berts@1"
    assert job["name"] == "digits"

    plain = bert.post("/jobs", json={"model": "digits", "params": {"rate": 1}})
    assert plain.status_code == 202, plain.text
    assert bert.get(f"/jobs/{plain.json()['job_id']}").json()["spec"]["model"] == "digits@1"


def test_every_fault_of_the_parameters_is_named_by_its_path(digits: dict[str, Any], bert: httpx.Client):
    params = {"epochs": 0, "net": {"layers": 99}, "colour": "red"}
    assert faults(bert.post("/models/digits/runs", json={"params": params})) == {
        "params.epochs": "0 is less than the minimum of 1",
        "params.net.layers": "99 is greater than the maximum of 9",
        "params.colour": "There is no such parameter",
        "params.rate": "This parameter is required",
    }


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"model": "nothing"}, "model", "There is no model 'nothing'"),
        ({"model": "digits@9", "params": {"rate": 1}}, "model", "There is no model digits@9"),
        ({"model": "digits", "image": "busybox", "params": {"rate": 1}}, "image", "give one of the two"),
        ({"model": "digits", "runtime": "process", "command": "true"}, "model", "bare machine"),
    ],
)
def test_a_job_that_names_a_model_wrongly_is_told_so(
    digits: dict[str, Any], bert: httpx.Client, body: dict[str, Any], field: str, words: str
):
    assert words in faults(bert.post("/jobs", json=body))[field]


def test_only_experts_and_administrators_release_and_a_name_is_its_owners(
    digits: dict[str, Any], stack: GatewayStack, bert: httpx.Client, registry: RegistryServer
):
    wish = {"name": "digits", "image": f"{registry.host}/team/digits"}
    assert bert.post("/models", json=wish).json()["code"] == "forbidden"
    with stack.client(stack.login("eve", PASSWORD)) as eve:
        assert eve.post("/models", json=wish).json()["code"] == "name_taken"
        assert eve.patch("/models/digits", json={"description": "hers"}).json()["code"] == "forbidden"
        assert eve.delete("/models/digits").json()["code"] == "forbidden"


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("{registry}/team/absent", "not_found", "nothing at /v2/team/absent/manifests/latest"),
        ("127.0.0.1:{closed}/team/x", "registry_failed", "cannot be reached"),
        (
            "127.0.0.1:9/team/x",
            "registry_refused",
            "port 9 is not allowed, only 443, 8443. An operator may allow it (WHERRY_REGISTRIES)",
        ),
        ("169.254.169.254/team/x", "registry_refused", "is not a public address"),
        ("Team/UPPER", "invalid", "no reference of an image"),
    ],
)
def test_an_image_that_cannot_be_read_is_said_to_be_so(
    anna: httpx.Client, registry: RegistryServer, closed_port: int, image: str, code: str, words: str
):
    named = image.format(registry=registry.host, closed=closed_port)
    answer = anna.post("/models", json={"name": "unread", "image": named}).json()
    assert (answer["code"], words in str(answer)) == (code, True), answer


def test_an_image_that_only_nodes_have_is_believed_with_what_is_given(anna: httpx.Client):
    wish = {"name": "local", "image": "wherry/filters:latest", "read": False, "params": SCHEMA, "description": "Here."}
    made = anna.post("/models", json=wish)
    assert made.status_code == 201, made.text
    assert (made.json()["image"], made.json()["params"]) == ("wherry/filters:latest", SCHEMA)
    again = anna.post("/models", json={"name": "local", "image": "wherry/filters:2", "read": False}).json()
    assert (again["version"], again["params"]) == (2, SCHEMA), "what is left out stays as it was"
    bare = anna.post("/models", json={"name": "local", "image": "wherry/filters:2", "read": False, "params": {}}).json()
    assert (bare["version"], bare["params"]) == (3, {})
    assert faults(anna.post("/models", json=wish | {"params": {"type": "objct"}}))["params"].startswith(
        "This is no JSON"
    )


def test_a_registry_of_fifty_repositories_is_read_once_and_then_found_unchanged(
    anna: httpx.Client, registry: RegistryServer
):
    cog = {"components": {"schemas": {"Input": {"type": "object", "properties": {"prompt": {"type": "string"}}}}}}
    for number in range(50):
        labels = {
            0: {LABEL_DESCRIPTION: f"Number {number}.", LABEL_PARAMS: json.dumps(SCHEMA)},
            1: {"run.cog.openapi_schema": json.dumps(cog)},
            2: {"org.opencontainers.image.description": "Plain."},
            3: None,
            4: {LABEL_PARAMS: "{no json", LABEL_NAME: f"named-{number}"},
        }[number % 5]
        registry.push(f"fifty/model-{number:02}", labels, "2.10" if number % 2 else "latest", layers=1 + number % 3)
    registry.push("fifty/model-01", None, "2.9")

    run = anna.post("/models/sync", json={"registry": registry.host, "prefix": "fifty/"})
    assert run.status_code == 200, run.text
    found = run.json()
    assert (found["repositories"], found["unchanged"], found["failures"], found["error"]) == (50, 0, 0, ""), found
    assert len(found["added"]) == 50
    assert "fifty.model-00@1" in found["added"]
    assert "named-4@1" in found["added"]

    assert anna.get("/models/fifty.model-00").json()["params"] == SCHEMA
    second = anna.get("/models/fifty.model-01").json()
    assert second["params"]["properties"] == {"prompt": {"type": "string"}}
    assert second["versions"][0]["reference"].endswith(":2.10")
    assert anna.get("/models/fifty.model-02").json()["description"] == "Plain."
    assert "is not JSON" in anna.get("/models/named-4").json()["versions"][0]["remarks"][0]

    again = anna.post("/models/sync", json={"registry": registry.host, "prefix": "fifty/"}).json()
    assert (again["repositories"], again["unchanged"], again["added"]) == (50, 50, [])
    assert anna.get(f"/models/sync/{again['run_id']}").json() == again


def test_a_registry_that_is_down_is_said_to_be(anna: httpx.Client, bert: httpx.Client, closed_port: int):
    run = anna.post("/models/sync", json={"registry": f"127.0.0.1:{closed_port}"}).json()
    assert "cannot be reached" in run["error"]
    assert run["ended_at"] is not None
    assert bert.post("/models/sync", json={"registry": "127.0.0.1:1"}).status_code == 403
    assert faults(anna.post("/models/sync", json={"registry": "http://x/"}))["registry"]


def test_what_is_measured_is_kept_over_time_and_deterioration_is_flagged(
    digits: dict[str, Any], anna: httpx.Client, bert: httpx.Client
):
    quality = {"metric": "accuracy", "limit": 0.8, "drop": 0.05}
    assert anna.patch("/models/digits", json={"quality": quality}).json()["quality"]["better"] == "higher"
    said = [
        anna.post("/models/digits/evaluations", json={"metrics": {"accuracy": value}, "note": f"{value}"}).json()
        for value in (0.9, 0.93, 0.88, 0.7)
    ]
    assert [one["worse"] for one in said] == [
        None, None, "accuracy is 0.88, 0.05 off the best so far, 0.93", "accuracy is 0.7, below the limit of 0.8",
    ]  # fmt: skip
    page = bert.get("/models/digits/evaluations", params={"limit": 3}).json()
    assert [one["metrics"]["accuracy"] for one in page["evaluations"]] == [0.7, 0.88, 0.93]
    assert page["worse"] == "accuracy is 0.7, below the limit of 0.8"
    rest = bert.get("/models/digits/evaluations", params={"limit": 3, "cursor": page["cursor"]}).json()
    assert [one["metrics"]["accuracy"] for one in rest["evaluations"]] == [0.9]
    assert bert.post("/models/digits/evaluations", json={"metrics": {"accuracy": 1}}).status_code == 403
    assert anna.patch("/models/digits", json={"quality": None}).json()["quality"] is None


def test_experts_are_asked_with_the_data_and_the_version_that_answers_closes_the_request(
    digits: dict[str, Any], stack: GatewayStack, admin: httpx.Client, anna: httpx.Client, registry: RegistryServer
):
    admin.post("/datasets", data={"name": "new-data"}, files={"file": ("d.csv", b"3,4")}).raise_for_status()
    anna.patch("/models/digits", json={"experts": ["anna", "eve"]}).raise_for_status()
    asked = admin.post(
        "/models/digits/fine-tune-requests", json={"message": "Sevens are read as ones.", "dataset": "new-data"}
    )
    assert asked.status_code == 201, asked.text
    request = asked.json()
    assert (request["state"], request["version"], request["dataset"]) == ("open", 1, "new-data@1")
    assert request["told"] == ["anna", "eve"]

    letters = asyncio.run(told(stack, 2))  # there was no notifier yet: they are told once there is one
    assert [one.target for one in letters] == ["anna@example.com", "eve@example.com"]
    assert mail_subject(letters[0]) == "[wherry] admin asks for a better digits"
    assert "Sevens are read as ones." in mail(letters[0], "")
    assert "dataset new-data@1" in mail(letters[0], "")

    registry.push("team/digits", LABELS | {"better": "yes"})
    better = anna.post(
        "/models", json={"name": "digits", "image": f"{registry.host}/team/digits", "answers": request["id"]}
    )
    assert better.status_code == 201, better.text
    [closed] = anna.get("/models/digits/fine-tune-requests").json()["requests"]
    assert (closed["state"], closed["answer"], closed["closed_by"]) == (
        "answered",
        f"digits@{better.json()['version']}",
        "anna",
    )
    late = anna.post(f"/models/digits/fine-tune-requests/{request['id']}/decline", json={"why": "no"})
    assert late.json()["code"] == "conflict"

    other = admin.post("/models/digits/fine-tune-requests", json={"message": "Again."}).json()
    said_no = anna.post(
        f"/models/digits/fine-tune-requests/{other['id']}/decline", json={"why": "Too few data."}
    ).json()
    assert (said_no["state"], said_no["answer"]) == ("declined", "Too few data.")
    assert anna.get("/models/digits/fine-tune-requests", params={"state": "open"}).json()["requests"] == []


async def test_a_registry_with_a_login_is_read_with_the_one_that_is_set_and_else_says_what_it_wants(folder: Path):
    with RegistryServer(folder / "closed", htpasswd=f"ann:{OPEN_SESAME}") as closed:
        digest = await asyncio.to_thread(closed.push, "own/model", LABELS, auth=("ann", "open sesame"))
        places = frozenset({closed.host})
        reference = parse(f"{closed.host}/own/model")
        async with Registry(places, {closed.host: "ann:open sesame"}) as known:
            facts = await known.image(reference)
        assert (facts.digest, facts.labels) == (digest, LABELS)
        for logins in ({}, {closed.host: "ann:wrong"}):
            async with Registry(places, logins) as unknown:
                with pytest.raises(WherryError, match="WHERRY_REGISTRY_LOGINS") as refused:
                    await unknown.image(reference)
            assert refused.value.code == "registry_failed"


async def told(stack: GatewayStack, count: int) -> list[DeliveryRequested]:
    """Play the notifier until it has been asked to tell so many; return what, by their targets."""
    found: dict[str, DeliveryRequested] = {}
    enough = asyncio.Event()

    async def tell(_params: dict[str, str], request: DeliveryRequested) -> Empty:
        found[request.target] = request
        if len(found) >= count:
            enough.set()
        return Empty()

    async with stack.bus(Service.NOTIFIER, "notifier") as bus:
        await bus.serve(TELL, tell, queue="notifier")
        async with asyncio.timeout(150):
            await enough.wait()
        await asyncio.sleep(0.2)  # the answer is on its way
    return sorted(found.values(), key=lambda one: one.target)
