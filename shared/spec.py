"""What a user asks for: the job spec, with its defaults, units and bounds.

Sizes are bytes (``"512MiB"`` is understood), times are seconds (``"2h"`` is understood), CPUs are fractional.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from shared.model import Frozen

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(i?)[bB]?\s*$")
_DURATION = re.compile(
    r"^\s*(?:(\d+(?:\.\d+)?)d)?\s*(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m)?\s*(?:(\d+(?:\.\d+)?)s?)?\s*$"
)
KIB, MIB, GIB = 1024, 1024**2, 1024**3
#: The whole spec as JSON may not be larger (decisions: `created` carries it).
SPEC_BYTES_MAX = 256 * KIB
GANG_MEMBERS_MAX = 128
ENV_MAX = 1024
#: Variables of `ENV_MAX` that a member of a gang is given: what it is, and of how many.
GANG_ENV = 4


def parse_size(value: object) -> object:
    """Turn ``"512MiB"`` (binary) or ``"2GB"`` (decimal) into bytes; leave anything that is not text as it is.

    Raises:
        ValueError: text that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"{value!r} is no size: give bytes or text such as 512MiB or 2GB")
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** " kmgt".index(unit.lower() or " "))


def parse_duration(value: object) -> object:
    """Turn ``"1h30m"`` into seconds; leave anything that is not text as it is.

    Raises:
        ValueError: text that is no duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.match(value)
    if not match or not any(match.groups()):
        raise ValueError(f"{value!r} is no duration: give seconds or text such as 90s, 30m, 2h or 1d")
    return sum(float(part) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True) if part)


Bytes = Annotated[int, Field(ge=0, le=2**53), BeforeValidator(parse_size, json_schema_input_type=int | str)]
Seconds = Annotated[
    float, Field(gt=0, le=366 * 86400), BeforeValidator(parse_duration, json_schema_input_type=float | str)
]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]{0,63}$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")]
EnvValue = Annotated[str, StringConstraints(max_length=32 * KIB, pattern=r"^[^\x00]*$")]
Arg = Annotated[str, StringConstraints(max_length=128 * KIB, pattern=r"^[^\x00]*$")]
ImageRef = Annotated[str, StringConstraints(max_length=512, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$")]
ArtifactId = Annotated[str, StringConstraints(pattern=r"^a[a-z2-7]{25}$")]
Email = Annotated[
    str, StringConstraints(max_length=254, pattern=r"^[^\s@<>\"',;:\x00-\x1f]+@[^\s@<>\"',;:\x00-\x1f]+$")
]


class Resources(Frozen):
    """What one attempt is promised, and the most it may use."""

    cpus: float = Field(default=1.0, gt=0, le=4096)
    memory: Bytes = Field(default=GIB, ge=6 * MIB)  # Docker refuses less than 6 MiB
    gpus: int = Field(default=0, ge=0, le=64)
    gpu_memory: Bytes = 0  # free memory wanted on each GPU
    disk: Bytes = 10 * GIB
    shm: Bytes = 64 * MIB
    tmp: Bytes = 256 * MIB


class Placement(Frozen):
    """Which nodes will do. Everything given must hold."""

    tags: tuple[Tag, ...] = ()
    cluster: str | None = None
    node: str | None = None  # a node's id or name
    arch: Literal["amd64", "arm64"] | None = None
    policy: Literal["pack", "spread"] = "pack"


class Timeouts(Frozen):
    """The five clocks, in seconds; ``None`` is no limit."""

    queue: Seconds | None = None
    pull: Seconds = 1800
    stage_in: Seconds = 1800
    run: Seconds = 86400
    total: Seconds = 604800


class WebhookTarget(Frozen):
    """Where to POST the event, signed by the Standard Webhooks scheme."""

    url: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^\s\x00-\x1f]+$")]
    #: ``whsec_…``; without one the owner's own signing secret is used. Never travels beyond the gateway.
    secret: Annotated[str, StringConstraints(pattern=r"^whsec_[A-Za-z0-9+/=]{32,88}$")] | None = None
    #: Set by the gateway when it puts a given secret away; users cannot.
    secret_ref: str | None = None


NotifyOn = Literal["succeeded", "failed", "cancelled", "timed_out"]


class Notify(Frozen):
    """Who hears of which ends: an email address or a webhook."""

    on: tuple[NotifyOn, ...] = ("succeeded", "failed", "cancelled", "timed_out")
    email: Email | None = None
    webhook: WebhookTarget | None = None

    @model_validator(mode="after")
    def _one_target(self) -> "Notify":
        if (self.email is None) == (self.webhook is None):
            raise ValueError("give either email or webhook")
        return self


RetryOn = Annotated[str, StringConstraints(pattern=r"^(failed|timed_out|oom|exit:\d{1,3})$")]
JobId = Annotated[str, StringConstraints(pattern=r"^j[a-z2-7]{25}$")]


class Need(Frozen):
    """Another job that has to end first.

    `on` says how: ``ok`` with success; ``any`` in any way but by a cancel; ``always`` in any way at all. When it ends
    otherwise, so does the job that needs it: cancelled where the other was cancelled, else failed.
    """

    job: JobId
    on: Literal["ok", "any", "always"] = "ok"


def _need(value: object) -> object:
    return {"job": value} if isinstance(value, str) else value


#: ``job:<id>`` for all outputs of another job, ``job:<id>/<path>`` for a file or a folder of them; ``artifact:<id>``;
#: ``dataset:<name>`` for its newest version, ``dataset:<name>@<version>``; or a URL.
InputText = Annotated[
    str,
    StringConstraints(
        max_length=4096,
        pattern=(
            r"^(job:j[a-z2-7]{25}(/[^\x00-\x1f\x7f]+)?|artifact:a[a-z2-7]{25}"
            r"|dataset:[a-z0-9][a-z0-9._-]{0,127}(@[1-9][0-9]{0,8})?|https?://[^\s\x00-\x1f\x7f]+)$"
        ),
    ),
]
InputName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ModelRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}(@[1-9][0-9]{0,8})?$")]
RoleName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]

#: In the OpenAPI document: shown and never sent.
_READ_ONLY: dict[str, Any] = {"readOnly": True}


class Input(Frozen):
    """Something that a job finds below its inputs.

    Text alone stands for its `source`. A zip is unpacked into a folder unless `unpack` is false; anything else is a
    file as it is. Outputs of a job are always as they were left.
    """

    source: InputText
    unpack: bool = True
    #: False: it is not brought; the program fetches it by itself (network ``api``).
    stage: bool = True
    #: Set by the gateway for artifacts and datasets, from what they are at that moment; users cannot.
    artifact: ArtifactId | None = Field(default=None, json_schema_extra=_READ_ONLY)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, json_schema_extra=_READ_ONLY
    )
    size: int | None = Field(default=None, ge=0, json_schema_extra=_READ_ONLY)

    @property
    def job(self) -> tuple[str, str | None] | None:
        """Return another job's id and the path among its outputs (None: all of them), where it is such an input."""
        if not self.source.startswith("job:"):
            return None
        job_id, _, path = self.source.removeprefix("job:").partition("/")
        return job_id, path.strip("/") or None

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """Write what has nothing but a source as it was given."""
        return self.source if self == Input(source=self.source) else whole(self)


def _input(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


class GangRole(Frozen):
    """Members of a gang that do the same. What is not given is the job's own."""

    count: int = Field(default=1, ge=1, le=128)
    #: Ports on which each member may listen, for the others of a `connected` gang.
    ports: int = Field(default=1, ge=0, le=16)
    #: Roles whose members all run before a member of this one is started.
    start_after: Annotated[tuple[RoleName, ...], Field(max_length=16)] = ()
    #: Members that serve the others and need not end: once all others have succeeded they are stopped, and all is well.
    serves: bool = False
    image: ImageRef | None = None
    command: Arg | Annotated[tuple[Arg, ...], Field(min_length=1, max_length=4096)] | None = None
    resources: Resources | None = None
    env: Annotated[dict[EnvName, EnvValue], Field(max_length=ENV_MAX)] = {}


class Gang(Frozen):
    """Roles that start together or not at all, and end together.

    `on_failure`: one member that fails ends all; then the job has failed (``stop``), or all begin anew as long as
    `max_attempts` and `retry_on` allow (``restart``). What is the machines' fault is tried again in either case;
    but with `on_loss` ``stop`` a gang that runs has failed once a machine of it is lost.
    """

    roles: Annotated[dict[RoleName, GangRole], Field(min_length=1, max_length=16)]
    on_failure: Literal["stop", "restart"] = "stop"
    on_loss: Literal["stop", "restart"] = "restart"
    #: Seconds from their placing within which all members must run; else all are given up and placed anew.
    deadline: Seconds = 1800
    #: Members reach each other, on whatever nodes they are, under addresses that each is given.
    connected: bool = False

    @model_validator(mode="after")
    def _size(self) -> "Gang":
        if self.size > GANG_MEMBERS_MAX:
            raise ValueError(f"a gang has at most {GANG_MEMBERS_MAX} members, not {self.size}")
        return self

    @model_validator(mode="after")
    def _served(self) -> "Gang":
        if all(role.serves for role in self.roles.values()):
            raise ValueError("all roles serve, so none would ever end the gang")
        return self

    @model_validator(mode="after")
    def _start_order(self) -> "Gang":
        waits = {name: set(role.start_after) for name, role in self.roles.items()}
        if unknown := sorted(set().union(*waits.values()) - set(self.roles)):
            raise ValueError(f"start_after names {unknown[0]!r}, which is no role of this gang")
        while waits:
            free = {name for name, after in waits.items() if not after & set(waits)}
            if not free:
                raise ValueError(f"start_after goes round in a circle among {', '.join(sorted(waits))}")
            waits = {name: after for name, after in waits.items() if name not in free}
        return self

    @property
    def size(self) -> int:
        """Return the number of members."""
        return sum(role.count for role in self.roles.values())


ItemName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
ItemId = Annotated[str, StringConstraints(pattern=r"^i[a-z2-7]{25}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: Items of one map job, and of one request to add some.
ITEMS_MAX, ITEMS_AT_ONCE = 100_000, 500


class ItemSpec(Frozen):
    """One item of a map job: a file (an artifact, or a path below the job's inputs), or nothing but `params`.

    Text alone stands for the `name`, which is then all that the program is given.
    """

    #: The gateway makes one where none is given. An id that the job has already is the same item.
    id: ItemId | None = None
    name: ItemName = "item"
    params: dict[str, Any] = {}
    artifact: ArtifactId | None = None
    #: A file below the inputs: ``<input>/<path>``.
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    #: Set by the gateway: of the artifact; users cannot.
    sha256: Sha256 | None = Field(default=None, json_schema_extra=_READ_ONLY)
    size: int | None = Field(default=None, ge=0, json_schema_extra=_READ_ONLY)
    #: Set by the gateway: the artifact is the result itself, and nothing is run for it.
    given: bool = Field(default=False, json_schema_extra=_READ_ONLY)

    @property
    def bytes(self) -> int:
        """Return how much it is as JSON, which all items of a job together may have only so much of."""
        return len(self.model_dump_json(exclude_defaults=True).encode())


def _item(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Map(Frozen):
    """One program over many items, by workers that each take item after item.

    A worker runs the job's command once for each item, with ``WHERRY_ITEM`` (its id), ``WHERRY_IN`` (its file, where it
    has one), ``WHERRY_OUT`` (a folder, or the file to write) and ``WHERRY_ITEM_PARAMS`` (a JSON file). A `warm` worker
    starts its command once, and gives it items as lines of JSON on the standard input: ``{"item", "in", "out",
    "params"}``; the program answers each with a line ``::item <id> ok`` or ``::item <id> failed <reason>``.
    """

    #: Files of which each is an item: of a dataset's or an artifact's zip.
    over: InputText | None = None
    #: Of the files of `over`, those whose path matches, as the shell does it (``*.png``, ``photos/**``).
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    items: Annotated[
        tuple[Annotated[ItemSpec, BeforeValidator(_item, json_schema_input_type=ItemSpec | str)], ...],
        Field(max_length=10_000),
    ] = ()
    #: More items may be added, until the job is closed.
    open: bool = False
    warm: bool = False
    #: Workers at a time, at most.
    parallelism: int = Field(default=4, ge=1, le=1000)
    #: Tries of an item that fails by itself.
    item_attempts: int = Field(default=1, ge=1, le=10)
    #: Seconds that one item may take.
    item_timeout: Seconds = 3600


class Service(Frozen):
    """A program that is kept running, and asked over HTTP through wherry."""

    #: Where it listens, inside its container.
    port: int = Field(ge=1, le=65535)
    replicas: int = Field(default=1, ge=0, le=100)
    #: A path that answers 2xx once it is ready, and as long as it is well; None: that the port takes connections.
    health: Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[^\s\x00-\x1f\x7f]*$")] | None = None
    #: Seconds from its start within which a replica must be ready.
    start_timeout: Seconds = 600
    #: Requests that one replica is asked at a time.
    concurrency: int = Field(default=8, ge=1, le=1000)
    #: Seconds that one request may take.
    request_timeout: Seconds = 60
    #: Seconds without a request after which no replica is kept; the next request brings one back. None: never.
    idle: Seconds | None = None
    #: Seconds that a replica which is taken away has for the requests that it has begun.
    drain: Seconds = 30


#: What made the job, where it is seen as something else too.
View = Literal["job", "workload", "training", "deployment"]


class JobSpec(Frozen):
    """A job as a user describes it. An unknown field is an error that names it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] = "job"
    kind: Literal["run", "gang", "map", "service"] = "run"
    gang: Gang | None = None
    map: Map | None = None
    service: Service | None = None
    #: Set by the gateway; users cannot.
    view: View = Field(default="job", json_schema_extra=_READ_ONLY)
    runtime: Literal["docker", "process"] = "docker"
    image: ImageRef | None = None
    #: One of the catalogue, instead of an image: ``name`` (its newest version) or ``name@version``. `params` have to
    #: fit its schema.
    model: ModelRef | None = None
    #: Text runs in ``sh -c``, a list as it is; absent, the image's own command runs.
    command: Arg | Annotated[tuple[Arg, ...], Field(min_length=1, max_length=4096)] | None = None
    source: ArtifactId | None = None  # a zip, unpacked into the working directory
    params: dict[str, Any] = {}
    env: Annotated[dict[EnvName, EnvValue], Field(max_length=ENV_MAX)] = {}
    resources: Resources = Resources()
    placement: Placement = Placement()
    #: ``api``: this job's own data, by ``WHERRY_API``, and nothing else.
    network: Literal["none", "api"] = "none"
    tmp_exec: bool = False
    priority: int = Field(default=50, ge=0, le=100)
    max_attempts: int = Field(default=1, ge=1, le=100)
    retry_on: tuple[RetryOn, ...] = ("failed",)
    #: What the node does once it has been cut off for two thirds of its lease: let the program run, or stop it.
    on_disconnect: Literal["keep", "stop"] = "keep"
    #: Seconds of silence after which another node may take over; None: as soon as the node is lost.
    replace_after: Seconds | None = None
    #: Never two attempts at a time, even if a node is cut off. Implies `on_disconnect: stop`.
    exclusive: bool = False
    needs: Annotated[
        tuple[Annotated[Need, BeforeValidator(_need, json_schema_input_type=Need | str)], ...], Field(max_length=100)
    ] = ()
    inputs: Annotated[
        dict[InputName, Annotated[Input, BeforeValidator(_input, json_schema_input_type=Input | InputText)]],
        Field(max_length=64),
    ] = {}
    timeouts: Timeouts = Timeouts()
    notify: Annotated[tuple[Notify, ...], Field(max_length=20)] = ()
    labels: Annotated[tuple[Label, ...], Field(max_length=64)] = ()
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None

    @model_validator(mode="after")
    def _runtime_fits(self) -> "JobSpec":
        for member in self.members() if self.gang else (self,):
            if self.runtime == "docker" and member.image is None and self.model is None:
                raise ValueError("a container job needs an image or a model")
            if self.runtime == "process" and member.image is not None:
                raise ValueError("runtime process runs on the bare machine and takes no image")
            if self.runtime == "process" and member.command is None:
                raise ValueError("runtime process needs a command")
        return self

    @model_validator(mode="after")
    def _kind_fits(self) -> "JobSpec":
        for kind, field in (("gang", self.gang), ("map", self.map), ("service", self.service)):
            if (self.kind == kind) != (field is not None):
                raise ValueError(f"kind {kind} and the field {kind} go together")
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> "JobSpec":
        if self.network == "api" and (self.service or (self.gang and self.gang.connected)):
            raise ValueError("network api is not for programs that have another network: services and connected gangs")
        for name, one in self.inputs.items():
            if not one.stage and self.network != "api":
                raise ValueError(f"the input {name} with stage false is fetched by the program: that needs network api")
        return self

    @model_validator(mode="after")
    def _members_fit(self) -> "JobSpec":
        if any(len(member.env) > ENV_MAX - GANG_ENV for member in self.members()):
            raise ValueError(f"a member of a gang has at most {ENV_MAX - GANG_ENV} variables, with those of the job")
        return self

    def members(self) -> tuple["GangRole", ...]:
        """Return one entry for each role of the gang, with what it does not name taken from the job."""
        roles = self.gang.roles.values() if self.gang else ()
        return tuple(
            role.model_copy(
                update={
                    "image": role.image or self.image,
                    "command": role.command or self.command,
                    "resources": role.resources or self.resources,
                    "env": self.env | role.env,
                }
            )
            for role in roles
        )

    @property
    def is_fenced(self) -> bool:
        """Return whether a node that was cut off stops the program before another node may start it."""
        return self.exclusive or self.on_disconnect == "stop"

    def needed(self) -> tuple[Need, ...]:
        """Return every job that has to end first: those of `needs`, and those whose outputs are inputs, each once."""
        found = {need.job: need for need in self.needs}
        for job_id, _ in filter(None, (one.job for one in self.inputs.values())):
            found.setdefault(job_id, Need(job=job_id))
        return tuple(found.values())

    def argv(self) -> tuple[str, ...] | None:
        """Return what to execute: ``sh -c TEXT`` for text, the list as it is, None for the image's own command."""
        if isinstance(self.command, str):
            return ("sh", "-c", self.command)
        return self.command
