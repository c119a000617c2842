import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """The application that has not reached NATS."""
    transport = httpx.ASGITransport(create_app(GatewaySettings(access_log=False)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def test_the_openapi_document_is_there_without_a_bus_and_complete(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    references = {text.split('"')[0] for text in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references - set(document["components"]["schemas"]) == set()
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    assert "source" in body["multipart/form-data"]["schema"]["properties"]
    assert document["components"]["schemas"]["JobSpec"]["additionalProperties"] is False
    for path in ("/v1/login", "/v1/logout", "/v1/status", "/v1/events", "/v1/jobs/{job_id}/outputs/{path}", "/healthz"):
        assert path in document["paths"], path


async def test_the_asyncapi_document_is_there_too(http: httpx.AsyncClient) -> None:
    assert (await http.get("/asyncapi.json")).json()["asyncapi"].startswith("3.")


async def test_alive_without_a_bus_but_not_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PATCH", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/v1/jobs", 503, "unavailable"),
        ("GET", "/v1/jobs", 503, "unavailable"),
        ("DELETE", "/logout", 503, "unavailable"),
    ],
)
async def test_every_error_is_a_problem_document(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/nodes/n1/prefetch"), ("POST", "/v1/nodes/n1/drain"), ("POST", "/v1/datasets"),
        ("PATCH", "/v1/datasets/d"), ("POST", "/v1/jobs/plan"), ("POST", "/v1/jobs/batch"), ("POST", "/v1/users"),
    ],
)  # fmt: skip
async def test_nothing_of_a_body_is_read_before_it_is_known_who_sends_it(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(3):
            read += 1
            yield b" " * 1024

    answer = await http.request(method, path, content=body(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"], read) == (503, "unavailable", 0)


async def test_every_answer_has_the_security_headers_and_keeps_a_given_request_id(http: httpx.AsyncClient) -> None:
    answer = await http.get("/healthz", headers={"X-Request-ID": "abc-1", "Origin": "https://evil.example"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-request-id"] == "abc-1"
    assert "access-control-allow-origin" not in answer.headers
    other = await http.get("/healthz", headers={"X-Request-ID": "no\tgood"})
    assert other.headers["x-request-id"] != "no\tgood"


async def test_metrics_name_the_route_and_not_the_path(http: httpx.AsyncClient) -> None:
    await http.get("/v1/jobs/j123")
    text = (await http.get("/metrics")).text
    assert 'route="/v1/jobs/{job_id}"' in text
    assert "j123" not in text


async def test_a_bug_is_a_500_that_tells_nothing(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.routes.health.prometheus_client.generate_latest", lambda: 1 / 0)
    answer = await http.get("/metrics")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "division" not in answer.text


async def test_a_gateway_that_cannot_be_says_so_and_ends() -> None:
    app = create_app(
        GatewaySettings(access_log=False, nats_url="nats://host:notaport", gateway_key=SecretStr("0" * 64))
    )
    async with asyncio.timeout(60), app.router.lifespan_context(app):
        await app.state.broken.wait()
