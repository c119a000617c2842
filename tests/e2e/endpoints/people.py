"""Health, documents, logins, users and their quotas."""

from typing import Any

from tests.e2e.documented import User
from tests.e2e.endpoints.things import Things, case
from tests.e2e.stack import until


@case("GET /healthz")
def it_lives(user: User, _: Things) -> None:
    assert user.ask("GET /healthz").json() == {"status": "ok"}


@case("GET /readyz")
def it_is_ready(user: User, _: Things) -> None:
    assert user.ask("GET /readyz").json() == {"status": "ready"}


@case("GET /metrics")
def numbers_for_prometheus(user: User, _: Things) -> None:
    text = user.ask("GET /metrics").text
    assert 'wherry_http_requests_total{method="GET",route="/healthz",status="200"}' in text


@case("GET /asyncapi.json")
def what_travels_on_the_bus(user: User, _: Things) -> None:
    assert "jobChanged" in user.ask("GET /asyncapi.json").json()["channels"]


@case("GET /v1/login")
def login_with_curl(user: User, things: Things) -> None:
    auth = (things.colleague, "a password of anna 1")
    assert user.ask("GET /v1/login", auth=auth).json()["user"] == things.colleague
    user.is_problem("GET /v1/login", user.stranger.get("/v1/login"), 401, "unauthenticated")


@case("POST /v1/login")
def login(user: User, things: Things) -> None:
    sent = {"user": things.colleague, "password": "a password of anna 1"}
    answer = user.stranger.post("/v1/login", json=sent)
    assert answer.json()["token"] != user.ask("POST /v1/login", json=sent).json()["token"]
    assert user.stranger.post("/v1/login", data=sent).json()["user"] == things.colleague
    wrong = user.stranger.post("/v1/login", json=sent | {"password": "no"})
    user.is_problem("POST /v1/login", wrong, 401, "unauthenticated")


@case("DELETE /v1/logout")
def logout(user: User, things: Things) -> None:
    sent = {"user": things.colleague, "password": "a password of anna 1"}
    token = user.ask("POST /v1/login", json=sent).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert "endpoint-anna" in user.ask("DELETE /v1/logout", headers=headers).json()["logout_message"]
    user.ask("GET /v1/users/me", headers=headers, status=401)


@case("GET /v1/status")
def status(user: User, things: Things) -> None:
    assert things.workload in user.ask("GET /v1/status").json()["active_workloads"]


@case("POST /v1/users")
def add_a_user(user: User, things: Things) -> None:
    wish = {"name": things.colleague, "password": "another password 1"}
    assert user.ask("POST /v1/users", json=wish, status=409).json()["code"] == "conflict"


@case("GET /v1/users")
def users(user: User, things: Things) -> None:
    names = [one["name"] for one in user.ask("GET /v1/users").json()["users"]]
    assert {"admin", things.colleague} <= set(names)
    first = user.ask("GET /v1/users", params={"limit": 1}).json()
    rest = user.ask("GET /v1/users", params={"cursor": first["cursor"]}).json()
    assert [one["name"] for one in first["users"] + rest["users"]] == names
    wrong = user.ask("GET /v1/users", params={"cursor": "nonsense"}, status=422).json()
    assert wrong["errors"][0]["field"] == "cursor"


@case("GET /v1/users/me")
def oneself(user: User, _: Things) -> None:
    found = user.ask("GET /v1/users/me").json()
    assert (found["user"], found["role"]) == ("admin", "admin")


@case("PATCH /v1/users/{name}")
def change_a_user(user: User, things: Things) -> None:
    found = user.ask("PATCH /v1/users/{name}", things.colleague, json={"email": "a@example.org"}).json()
    assert (found["name"], found["email"]) == (things.colleague, "a@example.org")
    user.ask("PATCH /v1/users/{name}", "admin", json={"disabled": True}, status=409)


@case("POST /v1/password")
def change_the_password(user: User, things: Things) -> None:
    old, new = "a password of anna 1", "a password of anna 2"
    token = user.ask("POST /v1/login", json={"user": things.colleague, "password": old}).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    user.ask("POST /v1/password", headers=headers, json={"old": old, "new": new}, status=204)
    user.ask("POST /v1/login", json={"user": things.colleague, "password": old}, status=401)
    user.ask("POST /v1/password", headers=headers, json={"old": new, "new": old}, status=204)


@case("GET /v1/webhook-secret")
def the_secret_of_webhooks(user: User, _: Things) -> None:
    assert user.ask("GET /v1/webhook-secret").json()["secret"].startswith("whsec_")


@case("PUT /v1/users/{name}/quota")
def set_a_quota(user: User, things: Things) -> None:
    found = user.ask("PUT /v1/users/{name}/quota", things.colleague, json={"running": 3, "memory": "1GiB"}).json()
    assert found["user"] == things.colleague


@case("GET /v1/users/{name}/quota")
def see_a_quota(user: User, things: Things) -> None:
    user.ask("PUT /v1/users/{name}/quota", things.colleague, json={"running": 3, "memory": "1GiB"})

    def there() -> Any:
        return user.ask("GET /v1/users/{name}/quota", things.colleague).json()["quota"]

    found = until(there, "the quota")
    assert (found["running"], found["memory"], found["cpus"]) == (3, 2**30, None)


@case("DELETE /v1/users/{name}/quota")
def take_a_quota_away(user: User, things: Things) -> None:
    user.ask("DELETE /v1/users/{name}/quota", things.colleague, status=204)
    until(lambda: not user.ask("GET /v1/users/{name}/quota", things.colleague).json()["quota"], "it is gone")


@case("DELETE /v1/users/{name}")
def remove_a_user(user: User, things: Things) -> None:
    user.ask("POST /v1/users", json={"name": "endpoint-bert", "password": "a password of bert 1"})
    user.ask("DELETE /v1/users/{name}", "endpoint-bert", status=204)
    user.ask("DELETE /v1/users/{name}", "admin", status=409)
    assert "endpoint-bert" not in [one["name"] for one in user.ask("GET /v1/users").json()["users"]]
