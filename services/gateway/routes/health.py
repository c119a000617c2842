"""For machines: alive, ready, numbers, and what travels on the bus."""

import json
from functools import cache
from typing import Any, Literal

import prometheus_client
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.gateway.routes.http import JSON, gateway_of
from shared import docs
from shared.errors import Unavailable

router = APIRouter(tags=["health"])
_PUBLIC = {"security": []}
_NUMBERS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


class HealthView(BaseModel):
    """How a gateway is."""

    status: Literal["ok", "ready"]


@router.get("/healthz", openapi_extra=_PUBLIC, response_model=HealthView)
async def healthz() -> Response:
    """Say that this process answers."""
    return Response(b'{"status":"ok"}', media_type=JSON)


@router.get("/readyz", openapi_extra=_PUBLIC, response_model=HealthView)
async def readyz(request: Request) -> Response:
    """Say whether requests can be served: NATS is connected and storage answers."""
    gateway = gateway_of(request)
    if gateway.stopping.is_set():
        raise Unavailable("This gateway is stopping.")
    if (why := await gateway.not_ready()) is not None:
        raise Unavailable(why)
    return Response(b'{"status":"ready"}', media_type=JSON)


@router.get("/metrics", openapi_extra=_PUBLIC, response_class=Response, responses=_NUMBERS)
async def metrics() -> Response:
    """Give numbers for Prometheus."""
    return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)


@router.get("/asyncapi.json", openapi_extra=_PUBLIC, response_model=dict[str, Any])
async def asyncapi(request: Request) -> Response:
    """Give the AsyncAPI document of the bus."""
    return Response(_asyncapi(request.app.version), media_type=JSON)


@cache
def _asyncapi(version: str) -> bytes:
    return json.dumps(docs.asyncapi(version)).encode()
