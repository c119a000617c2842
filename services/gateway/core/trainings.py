"""Trainings: a job, or a gang, seen as code that prepares data and makes a model of it."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from services.gateway.core import translate, views
from services.gateway.core.problems import invalid
from shared.errors import FieldProblem
from shared.job import Job
from shared.model import Frozen
from shared.requests.jobs import JobView
from shared.spec import (
    ENV_MAX,
    EnvName,
    EnvValue,
    Gang,
    GangRole,
    ImageRef,
    JobSpec,
    Label,
    Notify,
    Placement,
    Resources,
    RetryOn,
    Timeouts,
)
from shared.states import INFRASTRUCTURE_REASONS, JobState

#: The whole request, and each of its three modules in characters.
BODY_BYTES_MAX = 1024 * 1024
CODE_CHARS_MAX = 128 * 1024
#: The modules as their files are called, in the order in which they are needed.
MODULES = ("helpers", "preprocessing", "algorithm")
#: What `WHERRY_INPUTS` has the data set as.
DATASET = "dataset"
SERVER, WORKER, CHIEF = "ps", "worker", "chief"

Status = Literal["initializing", "training", "completed", "failed", "terminated"]
Code = Annotated[str, StringConstraints(max_length=CODE_CHARS_MAX)]

_STATUS: Mapping[JobState, Status] = {
    JobState.QUEUED: "initializing",
    JobState.PLACED: "initializing",
    JobState.STARTING: "initializing",
    JobState.RUNNING: "training",
    JobState.FINISHING: "training",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.TIMED_OUT: "failed",
    JobState.CANCELLED: "terminated",
}
_KNOWN_SOURCE = re.compile(r"^(https?://|artifact:|dataset:|job:)", re.IGNORECASE)
_ARTIFACT = re.compile(r"^a[a-z2-7]{25}$")


def _timeouts(value: object) -> object:
    """One number of seconds, or ``"10m"``, is how long it may run."""
    return {"run": value} if _is_short(value) else value


class Distribution(Frozen):
    """A training over several machines: workers that train, and parameter servers that hold what they share."""

    parameter_servers: int = Field(default=1, ge=0, le=32)
    workers: int = Field(default=2, ge=1, le=96)
    #: One member more, that alone trains; workers and servers work for it, and are stopped once it is done.
    chief: bool = False
    #: When a member fails: all end and it has failed, or all begin anew as long as `max_attempts` allows.
    on_failure: Literal["stop", "restart"] = "stop"
    #: When a machine is lost that a member runs on: all begin anew elsewhere, at no charge, or it has failed.
    on_loss: Literal["stop", "restart"] = "restart"
    #: Of a parameter server, where it needs other than the workers.
    server_resources: Resources | None = None

    @model_validator(mode="after")
    def _has_servers(self) -> Self:
        if self.server_resources is not None and not self.parameter_servers:
            raise ValueError("there are no parameter servers that `server_resources` are for")
        return self


class NewTraining(Frozen):
    """A training that is asked for. The three modules import each other as `preprocessing`, `algorithm`, `helpers`.

    `algorithm` defines ``train(data, params, outputs)``; `preprocessing` may define ``prepare(dataset, params)``, which
    gives the data. Each takes those of ``dataset``, ``params``, ``outputs``, ``data`` and ``cluster`` that it names.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] = "training"
    algorithm: Code
    preprocessing: Code = ""
    helpers: Code = ""
    #: A data set's name, with or without a version; an artifact's id; or a URL.
    dataset: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    params: dict[str, Any] = {}
    image: ImageRef | None = None
    distributed: Distribution | None = None
    #: Of each worker.
    resources: Resources = Resources()
    placement: Placement = Placement()
    runtime: Literal["docker", "process"] = "docker"
    env: Annotated[dict[EnvName, EnvValue], Field(max_length=ENV_MAX)] = {}
    priority: int = Field(default=50, ge=0, le=100)
    max_attempts: int = Field(default=1, ge=1, le=100)
    retry_on: tuple[RetryOn, ...] = ("failed",)
    timeouts: Annotated[Timeouts, BeforeValidator(_timeouts, json_schema_input_type=Timeouts | float | str)] = (
        Timeouts()
    )
    notify: Annotated[tuple[Notify, ...], Field(max_length=20)] = ()
    labels: Annotated[tuple[Label, ...], Field(max_length=64)] = ()
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None

    def modules(self) -> dict[str, str]:
        """Return the text of each module by its name."""
        return {name: getattr(self, name) for name in MODULES}


class Filters(BaseModel):
    """Which trainings are asked for."""

    status: list[str] | None = Field(default=None, description="One or more status words, repeated or with commas.")
    name: str | None = None
    owner: Literal["me"] | None = Field(default=None, description="`me`: one's own only, also to administrators.")
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None


class TrainingAccepted(BaseModel):
    """A training that was taken in, or asked to end."""

    training_id: str
    status: Status


class TrainingDocument(BaseModel):
    """A training and what has become of it. Its id is that of its job: logs, events and files are there too."""

    training_id: str
    name: str
    status: Status
    owner: str
    state: JobState  # of the job
    image: str | None
    dataset: str | None
    params: dict[str, Any]
    distributed: Distribution | None
    resources: Resources
    source: str | None  # the artifact with the modules as they run
    progress: views.ProgressView | None
    metrics: dict[str, float] = {}  # the last value of each that it printed; not in lists
    node: str | None
    members: list[views.MemberView]  # of a distributed one
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    termination_requested_at: datetime | None
    pending: list[views.PendingView]  # why it waits
    error: views.FailureView | None
    remarks: list[str]
    output_job: str | None  # the job whose outputs are the training's: its own, or its first worker's
    download_url: str | None  # of a zip with them, once it is completed
    logs_url: str
    metrics_url: str


class TrainingPage(BaseModel):
    """Some trainings, newest first; `cursor` asks for the next."""

    trainings: list[TrainingDocument]
    cursor: str | None


def check_modules(modules: Mapping[str, str]) -> None:
    """Check that each module can be parsed, by this Python, and that there is something to train with.

    Nothing of it is run. It takes up to half a second of one processor.

    Raises:
        WherryError: ``invalid``: with the line and its text, for each module at fault.
    """
    found: list[FieldProblem] = []
    for name, text in modules.items():
        parsed = _parsed(text)
        if isinstance(parsed, str):
            found.append(FieldProblem(field=name, message=parsed))
        elif name == "algorithm" and not _may_define(parsed, "train"):
            found.append(FieldProblem(field=name, message="It defines no function `train(data, params, outputs)`"))
    if found:
        raise invalid(found)


def spec_of(wish: NewTraining, image: str, command: tuple[str, ...]) -> JobSpec:
    """Return the job of a training.

    Args:
        wish: what is asked for.
        image: where it names none.
        command: what is run in the working directory.

    Raises:
        pydantic.ValidationError: the parts do not fit together.
    """
    kept = ("name", "runtime", "params", "env", "resources", "placement", "priority", "max_attempts", "retry_on",
            "timeouts", "notify", "labels", "idempotency_key")  # fmt: skip
    gang = _gang(wish.distributed, ends=_defines_serve(wish.algorithm)) if wish.distributed else None
    return JobSpec.model_validate(
        {name: getattr(wish, name) for name in kept}
        | {
            "view": "training",
            "kind": "gang" if gang else "run",
            "gang": gang,
            "image": (wish.image or image) if wish.runtime == "docker" else wish.image,
            "command": command,
            "inputs": {} if wish.dataset is None else {DATASET: {"source": source_of(wish.dataset)}},
        }
    )


def source_of(dataset: str) -> str:
    """Return a data set, an artifact or a URL as the source of a job's input."""
    if _ARTIFACT.match(dataset):
        return f"artifact:{dataset}"
    return dataset if _KNOWN_SOURCE.match(dataset) else f"dataset:{dataset}"


def field_of(problem: FieldProblem) -> FieldProblem:
    """Return what is wrong with a job of a training as what is wrong with the training."""
    field = problem.field
    for prefix in (f"inputs.{DATASET}.source", f"inputs.{DATASET}"):
        field = DATASET if field == prefix else field
    return FieldProblem(field=field, message=problem.message)


def states_of(statuses: Iterable[str] | None) -> tuple[str, ...]:
    """Return the states of jobs whose status is among *statuses*, which may have commas; none: all.

    Raises:
        WherryError: ``invalid``: one is no status.
    """
    named = {text.strip() for given in statuses or () for text in given.split(",") if text.strip()}
    words = tuple(dict.fromkeys(_STATUS.values()))
    if unknown := sorted(named.difference(words)):
        message = f"{unknown[0]!r} is no status; there are {', '.join(words)}"
        raise invalid([FieldProblem(field="status", message=message)])
    return tuple(state.value for state, word in _STATUS.items() if word in named)


def status_of(job: Job) -> Status:
    """Return a training's status word."""
    return _STATUS[job.state]


def leading(job: Job) -> str | None:
    """Return the job whose output stands for the training: its own, or its first worker's; None while it has none."""
    if job.spec.kind == "run":
        return job.id
    return job.members[0].job_id if job.members else None


def at_fault(job: Job) -> str | None:
    """Return the job whose program has failed, of a training that has; None where it was no program."""
    if job.error is not None and job.error.reason in INFRASTRUCTURE_REASONS:  # what its peers say of it is not why
        return None
    if job.spec.kind == "run":
        last = job.attempts[-1] if job.attempts else None
        return job.id if last is not None and last.exit_code else None
    failed = (one.job_id for one in job.members if one.state is JobState.FAILED and one.exit_code)
    return next(failed, None)


def document(view: JobView, link: Callable[[str], str], first_view: JobView | None = None) -> TrainingDocument:
    """Return a training as its owner sees it.

    Args:
        view: its job.
        link: makes a path of the interface a URL.
        first_view: of a distributed training, the job that leads it: how far that is, and when it began.
    """
    job = view.job
    shown = translate.job(view, with_spec=False)
    led = shown if first_view is None else translate.job(first_view, with_spec=False)
    spec = job.spec
    given = spec.inputs.get(DATASET)
    first = leading(job)
    return TrainingDocument(
        training_id=job.id, name=spec.name, status=status_of(job), owner=job.owner.name, state=job.state,
        image=spec.image, dataset=given.source.removeprefix("dataset:") if given else None, params=spec.params,
        distributed=_distribution(spec), resources=spec.resources, source=spec.source,
        progress=shown.progress or led.progress,
        node=shown.node, members=shown.members, created_at=job.created_at,
        started_at=shown.started_at or led.started_at,
        ended_at=job.ended_at, termination_requested_at=job.cancel_requested_at, pending=shown.pending,
        error=shown.error, remarks=shown.remarks,
        output_job=first,
        download_url=link(f"/v1/jobs/{first}/outputs") if job.state is JobState.SUCCEEDED and first else None,
        logs_url=link(f"/v1/jobs/{job.id}/logs"), metrics_url=link(f"/v1/jobs/{first or job.id}/metrics"),
    )  # fmt: skip


def with_reason(shown: TrainingDocument, said: str, mark: str) -> TrainingDocument:
    """Return *shown* with the line of what its program *said* last that begins with *mark*, in its error."""
    lines = [line.removeprefix(mark).strip() for line in said.splitlines() if line.startswith(mark)]
    if shown.error is None or not lines:
        return shown
    message = f"{shown.error.message.removesuffix('.')}: {lines[-1][:1000]}"
    return shown.model_copy(update={"error": views.FailureView(reason=shown.error.reason, message=message)})


def _is_short(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _parsed(text: str) -> ast.Module | str:
    """Return the module, or what is wrong with it."""
    try:
        return ast.parse(text.encode())
    except SyntaxError as error:
        place = f"line {error.lineno}: " if error.lineno else ""
        line = (error.text or "").strip()[:200]
        return f"{place}{error.msg}" + (f": {line}" if line else "")
    except ValueError as error:  # a null character
        return str(error)
    except (RecursionError, MemoryError):
        return "It is nested too deeply to be read"


def _may_define(module: ast.Module, name: str) -> bool:
    """Return whether *name* may be bound by running *module*."""
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=bound) | ast.AsyncFunctionDef(name=bound) | ast.ClassDef(name=bound):
                found = bound == name
            case ast.Name(id=bound, ctx=ast.Store()):
                found = bound == name
            case ast.alias(name=bound, asname=given):
                found = bound == "*" or (given or bound) == name
            case _:
                found = False
        if found:
            return True
    return False


def _defines_serve(algorithm: str) -> bool:
    module = _parsed(algorithm)
    return not isinstance(module, str) and _may_define(module, "serve")


def _gang(wish: Distribution, *, ends: bool) -> Gang:
    """Return the gang of a training: first the member whose outputs are the training's.

    Args:
        wish: what is asked for.
        ends: a parameter server ends by itself once the workers are done, so that it is waited for.
    """
    servers = (SERVER,) if wish.parameter_servers else ()
    roles = {WORKER: GangRole(count=wish.workers, start_after=servers, serves=wish.chief)}
    if wish.chief:
        roles = {CHIEF: GangRole(start_after=(*servers, WORKER)), **roles}
    if wish.parameter_servers:
        serves = wish.chief or not ends
        roles[SERVER] = GangRole(count=wish.parameter_servers, resources=wish.server_resources, serves=serves)
    return Gang(roles=roles, on_failure=wish.on_failure, on_loss=wish.on_loss, connected=True)


def _distribution(spec: JobSpec) -> Distribution | None:
    if spec.gang is None:
        return None
    server = spec.gang.roles.get(SERVER)
    return Distribution(
        parameter_servers=server.count if server else 0,
        workers=spec.gang.roles[WORKER].count if WORKER in spec.gang.roles else 1,
        chief=CHIEF in spec.gang.roles,
        on_failure=spec.gang.on_failure,
        on_loss=spec.gang.on_loss,
        server_resources=server.resources if server else None,
    )
