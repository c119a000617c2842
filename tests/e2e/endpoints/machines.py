"""The machines, and what administrators do."""

from typing import Any

from tests.e2e.conftest import EDGE
from tests.e2e.documented import User
from tests.e2e.endpoints.things import NODE, Things, case
from tests.e2e.stack import until


@case("GET /v1/nodes")
def nodes(user: User, _: Things) -> None:
    found = {one["id"]: one for one in user.ask("GET /v1/nodes").json()["nodes"]}
    assert (found[NODE]["condition"], found[NODE]["capacity"]["cpus"] > 0) == ("online", True)


@case("GET /v1/nodes/{node}")
def see_a_node(user: User, _: Things) -> None:
    found = user.ask("GET /v1/nodes/{node}", NODE).json()
    assert ("process" in found["runtimes"], found["history"] is not None) == (True, True)


@case("GET /v1/nodes/{node}/metrics")
def metrics_of_a_node(user: User, _: Things) -> None:
    def seen() -> Any:
        return user.ask("GET /v1/nodes/{node}/metrics", NODE, params={"name": "cpu", "points": 2}).json()["series"]

    assert until(seen, "a point")[0]["name"] == "cpu"


@case("GET /v1/clusters")
def clusters(user: User, _: Things) -> None:
    found = user.ask("GET /v1/clusters").json()["clusters"]
    assert NODE in [node["id"] for one in found for node in one["nodes"]]


@case("POST /v1/nodes/{node}/cordon")
def cordon(user: User, things: Things) -> None:
    things.ends.append(lambda: things.stack.http.post(f"/nodes/{NODE}/undrain"))
    told = user.ask("POST /v1/nodes/{node}/cordon", NODE, json={"reason": "a look"}, status=202)
    assert told.json()["id"] == NODE
    until(lambda: things.stack.node(NODE)["duty"] == "cordoned", "it gets nothing new")


@case("POST /v1/nodes/{node}/drain")
def drain(user: User, things: Things) -> None:
    user.ask("POST /v1/nodes/{node}/drain", NODE, json={"reason": "new disk"}, status=202)
    until(lambda: things.stack.node(NODE)["duty"] in {"draining", "drained"}, "it is being emptied")
    assert things.stack.node(NODE)["reason"] == "new disk"


@case("POST /v1/nodes/{node}/undrain")
def undrain(user: User, things: Things) -> None:
    user.ask("POST /v1/nodes/{node}/undrain", NODE, status=202)
    until(lambda: things.stack.node(NODE)["duty"] == "active", "it gets work again")


@case("POST /v1/nodes/{node}/prefetch")
def prefetch(user: User, things: Things) -> None:
    sent = {"what": f"artifact:{things.artifact}"}
    assert user.ask("POST /v1/nodes/{node}/prefetch", NODE, json=sent, status=202).json()["id"] == NODE
    if things.stack.runtime == "docker":  # nodes keep inputs in volumes
        until(lambda: "prefetched" in str(things.stack.node(NODE)["history"]), "it is there")
    user.ask("POST /v1/nodes/{node}/prefetch", NODE, json={"what": f"artifact:a{'a' * 25}"}, status=422)


@case("GET /v1/dead-letters")
def dead_letters(user: User, things: Things) -> None:
    assert things.letter
    found = user.ask("GET /v1/dead-letters", params={"reader": "notifier"}).json()["dead_letters"]
    assert (found[0]["id"], found[0]["body"]) == (things.letter, "no delivery")


@case("POST /v1/dead-letters/{letter_id}/replay")
def replay_a_dead_letter(user: User, things: Things) -> None:
    told = user.ask("POST /v1/dead-letters/{letter_id}/replay", things.letter, status=202).json()
    assert (told["id"], bool(told["replayed_at"])) == (things.letter, True)


@case("POST /v1/retention/run")
def what_is_kept_no_longer(user: User, _: Things) -> None:
    found = user.ask("POST /v1/retention/run", params={"dry_run": "true"}).json()
    assert (found["dry_run"], found["error"], bool(found["ended_at"])) == (True, "", True)


@case("GET /v1/retention/runs/{run_id}")
def see_a_retention_run(user: User, _: Things) -> None:
    begun = user.ask("POST /v1/retention/run", params={"dry_run": "true"}).json()
    assert user.ask("GET /v1/retention/runs/{run_id}", begun["run_id"]).json()["started_at"] == begun["started_at"]


@case("DELETE /v1/nodes/{node}")
def forget_a_node(user: User, things: Things) -> None:
    refused = user.ask("DELETE /v1/nodes/{node}", NODE, status=409).json()
    assert "only one that is lost or has left" in refused["detail"]
    assert user.ask("DELETE /v1/nodes/{node}", things.left, status=202).json()["id"] == EDGE
    until(lambda: not things.stack.node(EDGE), "it is forgotten")
