"""The HTTP application: routes, errors as problem documents, and the OpenAPI document."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from services.gateway.adapters.access_log import AccessLog
from services.gateway.adapters.edge import Edge, problem_answer
from services.gateway.core import models as model_views
from services.gateway.core import (
    problems,
    refusals,
    tus,
    views_administration,
    views_datasets,
    views_fleet,
    views_mapping,
    views_people,
)
from services.gateway.core.deployments import DeploymentChanges, NewDeployment
from services.gateway.core.predictions import PredictOrder, QuickPredict
from services.gateway.core.trainings import NewTraining
from services.gateway.routes import (
    datasets,
    deployments,
    files,
    health,
    images,
    items,
    jobs,
    letters,
    models,
    nodes,
    people,
    quotas,
    retention,
    session,
    streams,
    trainings,
    uploads,
)
from services.gateway.settings import GatewaySettings
from services.gateway.shell.gateway import running
from shared import observe
from shared.errors import WherryError
from shared.spec import JobSpec

#: Bodies that routes read themselves: their schemas go into the document by hand.
_SENT: tuple[type[BaseModel], ...] = (
    JobSpec, views_people.Credentials, views_people.NewUser, views_people.UserChanges, views_people.NewPassword,
    problems.Problem, views_fleet.NodeOrder, views_fleet.DrainOrder, views_administration.QuotaLimits,
    views_datasets.NewDataset, views_datasets.DatasetChanges, views_fleet.PrefetchOrder,
    model_views.NewModel, model_views.ModelChanges, model_views.SyncOrder, model_views.ModelRun,
    model_views.NewEvaluation, model_views.NewFineTune, model_views.Decline,
    views_mapping.NewItems, views_mapping.RetriedItems, views_mapping.NewWorkload, NewTraining,
    NewDeployment, DeploymentChanges, PredictOrder, QuickPredict,
)  # fmt: skip
_SCHEMAS = "#/components/schemas/{model}"
_log = observe.logger("gateway")


class _Api(FastAPI):
    """The application within its edge: nothing of the framework stands before it."""

    edge: Edge | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await (self.edge or super().__call__)(scope, receive, send)

    async def inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve by the framework."""
        await super().__call__(scope, receive, send)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the application. It connects to NATS when it is started, not before.

    `app.state.gateway` is None until then; `app.state.broken` is set when it never will, or is cut off for good.
    """
    app = _Api(
        title="wherry", version="1", lifespan=_lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        description="Carries containerised work to the machines that can do it, and brings the results home.",
    )  # fmt: skip
    app.state.settings = settings
    app.state.gateway = None
    app.state.broken = asyncio.Event()
    app.state.access_log = AccessLog() if settings.access_log and settings.log_level in ("debug", "info") else None
    lanes = {("POST", "/v1/jobs"): jobs.submit, ("PUT", "/v1/artifacts"): files.put_artifact}
    app.edge = Edge(app.inner, lanes, app.state.access_log)
    _add_routes(app)
    _add_errors(app)
    app.openapi = lambda: _openapi(app)  # pyright: ignore[reportAttributeAccessIssue]
    return app


def _add_routes(app: FastAPI) -> None:
    """Add all routes in one flat list: FastAPI searches routers within routers twice for every request (measured)."""
    routers = (jobs.router, session.router("/v1"), streams.router, files.router, nodes.router, people.router)
    more = (uploads.router, datasets.router, quotas.router, letters.router, retention.router, health.router)
    seeds = (trainings.router, models.router, items.router, images.router("/v1"), images.more)
    for router in (*routers, *more, *seeds, deployments.router, deployments.v2):
        app.router.routes.extend(router.routes)
    # The image-processing seed's paths stand at the root as it lists them.
    for at_root in (session.router("", in_document=False), images.router("", in_document=False)):
        app.router.routes.extend(at_root.routes)


def _add_errors(app: FastAPI) -> None:
    def request_id(request: Request) -> str | None:
        return getattr(request.state, "request_id", None)

    async def on_wherry_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, WherryError)  # noqa: S101 - registered for it
        return problem_answer(error, request_id(request), tus.refusal(request.url.path, error.code))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        failure = problems.from_status(error.status_code, str(error.detail))
        return problem_answer(failure, request_id(request), error.headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
        found = [{**item, "loc": item["loc"][1:]} for item in error.errors()]
        return problem_answer(problems.invalid(problems.fields_at_fault(found)), request_id(request))

    async def on_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def on_bug(request: Request, _error: Exception) -> Response:
        return problem_answer(WherryError("internal", "A bug."), request_id(request))

    app.add_exception_handler(Exception, on_bug)
    app.add_exception_handler(WherryError, on_wherry_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(ClientDisconnect, on_gone)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Serve at once, so that /healthz and /readyz answer, and connect beside."""
    settings: GatewaySettings = app.state.settings
    if not settings.gateway_key.get_secret_value():
        raise RuntimeError("WHERRY_GATEWAY_KEY is not set: give 64 hex digits, the same for every gateway")
    connecting = asyncio.create_task(_stay_connected(app, settings))
    try:
        yield
    finally:
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting
        if app.state.access_log is not None:
            app.state.access_log.flush()


async def _stay_connected(app: FastAPI, settings: GatewaySettings) -> None:
    async with AsyncExitStack() as stack:
        try:
            gateway = app.state.gateway = await stack.enter_async_context(running(settings))
            await gateway.until_closed()
        except WherryError as error:
            _log.critical("gateway_refused", code=error.code, error=error.message)
        except Exception:  # noqa: BLE001 - who waits for the bus must not wait for ever
            _log.exception("gateway_failed")
        finally:
            app.state.gateway = None
        app.state.broken.set()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the document, with the schemas of bodies that routes read themselves."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = document.setdefault("components", {})
        schemas: dict[str, Any] = components.setdefault("schemas", {})
        for model in _SENT:
            schema = model.model_json_schema(ref_template=_SCHEMAS)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic"},
        }
        document["security"] = [{"bearer": []}]
        refusals.describe(document)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema
