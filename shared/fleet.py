"""The heartbeat: what a node has and does, and in the answer what should be there."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from shared.model import Amount, Message, Name, Sentence
from shared.spec import ImageRef, Input, ItemSpec, JobSpec, Map, Service
from shared.states import EndReason, NodeCondition, NodeDuty

#: The heartbeat protocol's version; one apart is understood.
PROTOCOL = 1
#: What a message speaks that does not say: the first. (A default that grew with PROTOCOL would not be sent, and be read
#: by the other side as its own.)
PROTOCOL_ABSENT = 1


class Gpu(Message):
    """One GPU as NVML reports it. Memory in bytes, utilisation in percent, temperature in degrees Celsius."""

    uuid: Name
    name: Name
    memory_total: Amount
    memory_used: Amount = 0
    utilisation: float = 0.0
    temperature: float | None = None
    processes: int = 0


class NodeInfo(Message):
    """What a node is: fixed while its agent runs."""

    id: str
    name: Name
    cluster: str = "default"
    tags: tuple[str, ...] = ()
    arch: Literal["amd64", "arm64"] = "amd64"
    os: str = "linux"
    agent_version: str = ""
    runtimes: tuple[str, ...] = ("docker",)  # what it can run now
    engine: str = ""  # e.g. "docker 20.10.24 api 1.41"; why not, when there is none
    api: tuple[str, ...] = ()  # those of them whose jobs may have the network api now
    engine_id: Name = ""  # the engine's own: members of a gang on one engine share a bridge
    address: Name = ""  # where other nodes reach its host network; empty: they do not
    host_network: bool = False  # members of a connected gang may have the host's network


def _first_gpus(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    return gpus[:GPUS_MAX]


#: GPUs of one node that are looked at; every node has as much room in the scheduler as the one with most.
GPUS_MAX = 64


class Capacity(Message):
    """What the node offers in all. CPUs fractional, sizes in bytes."""

    cpus: float = Field(ge=0, le=2**20)
    memory: Amount
    disk: Amount
    gpus: Annotated[tuple[Gpu, ...], AfterValidator(_first_gpus)] = ()


class Usage(Message):
    """What is really in use on the machine, by anyone."""

    cpu_percent: float = 0.0
    load1: float = 0.0
    memory_available: Amount = 0
    disk_free: Amount = 0


#: Items that one worker has begun, as a heartbeat tells of them.
HELD_ITEMS_MAX = 64


class HeldAttempt(Message):
    """An attempt that the node has in its journal and has not been told to forget."""

    job_id: str
    attempt: int
    state: str  # an AttemptState value
    #: Its last report is in the log. If the job still waits for it many heartbeats later, it cannot be read.
    delivered: bool = False
    served: int = 0  # requests that a replica has answered since it started
    in_flight: int = 0  # that it is answering
    #: Of a worker: items that its program has begun and of which no end is reported. A scheduler that takes over leaves
    #: them with it.
    items: Annotated[tuple[str, ...], Field(max_length=HELD_ITEMS_MAX)] = ()
    #: The order's `seq`. A scheduler that has not read so far does not know the attempt yet: no reason to forget it.
    seq: int = 0


def input_key(sha256: str, *, unpack: bool) -> str:
    """Return the name under which nodes keep a blob as an input: as it is, or unpacked where it is a zip."""
    return f"{sha256}-unpacked" if unpack else sha256


#: Inputs that a heartbeat names: the last used.
HELD_INPUTS_MAX = 200


class HeldInput(Message):
    """An input that a node has whole, for any job that wants it. Bytes as they take up the disk."""

    key: Name
    bytes: Amount = 0


class Prefetch(Message):
    """Something that a node is to have before a job wants it: an image, or an artifact as an input of jobs.

    The id stands for a job's where the node asks for the bytes: storage knows it from the node's record.
    """

    id: Annotated[str, Field(pattern=r"^p[a-z2-7]{25}$")]
    image: ImageRef | None = None
    input: Input | None = None  # with what the gateway sets


class PrefetchEnd(Message):
    """A prefetch is done, or has come to nothing: `error` says why."""

    id: Name
    error: Sentence = ""


#: Prefetches of one node that are not done; one more is refused.
PREFETCHES_MAX = 16


class Heartbeat(Message):
    """A node's report. Its id is the subject's, never the body's."""

    node: NodeInfo
    session: Name  # new at each start of the agent
    boot_id: Name
    seq: int  # counts up within a session
    capacity: Capacity
    usage: Usage = Usage()
    attempts: tuple[HeldAttempt, ...] = ()
    images: tuple[str, ...] = ()
    inputs: tuple[HeldInput, ...] = ()  # at most HELD_INPUTS_MAX
    prefetched: tuple[PrefetchEnd, ...] = ()  # of those that the last answer had
    epoch: int = 0  # the highest the agent has seen
    #: The agent's version of this protocol. Each side speaks with the one before and the one after its own.
    protocol: int = PROTOCOL_ABSENT
    #: The node is being shut down for good: nothing new, and it is not missed once it is empty.
    leaving: bool = False
    #: What is wrong with it, in words, while it runs what it can (an engine that does not answer); empty when well.
    problem: Sentence = ""
    at: AwareDatetime


class Peer(Message):
    """A member of a connected gang, as the others reach it: at `host`, on `ports` from the first on."""

    role: str
    index: int
    rank: int
    host: str
    port: int
    ports: int = 1


class Wiring(Message):
    """How a member of a connected gang reaches the others: by rank, itself among them.

    `network` bridge: one of the engine's, named by the gang and its round, where members are known by `host`; host: the
    nodes' own.
    """

    gang_id: str
    round: int
    network: Literal["bridge", "host"]
    peers: tuple[Peer, ...]
    rank: int


class ItemOrder(Message):
    """An item that a worker is to have. Its file is an artifact's bytes, or below the inputs, or there is none."""

    id: str
    spec: ItemSpec
    tries: int = 0  # of the item, that have ended: a worker tells by it that one it has ended already comes anew


class Order(Message):
    """All that a node needs to run an attempt.

    `parent`, `map`, `service`: of a worker of that map job, or a replica of that service. `params`, `command` and what
    else is the program's are in `spec`, which is of kind run for them too.
    """

    job_id: str
    owner_id: str
    attempt: int
    spec: JobSpec
    gpus: tuple[str, ...] = ()
    #: Stream sequence of the `placed` event: storage answers about this job once it has seen that far.
    seq: int
    image_digest: str | None = None  # pinned by an earlier attempt
    parent: str | None = None
    map: Map | None = None
    service: Service | None = None
    wiring: Wiring | None = None


class Assignment(Message):
    """One attempt that should be on the node (start in full, keep) or should not (stop, forget).

    ``stop`` ends the program and reports; ``forget`` means that the attempt's outcome is recorded or no longer
    counts: remove its container, files and journal entry.
    """

    job_id: str
    attempt: int
    action: Literal["start", "keep", "stop", "forget"]
    order: Order | None = None  # with start
    grace_s: float = 10.0  # with stop: seconds between SIGTERM and SIGKILL
    reason: EndReason | None = None  # with stop: why, where it is not a user's cancel
    #: With start or keep of a worker: all items that it is to have and of which no end is recorded; what it was given
    #: before and is missing here is no longer its. None: it is not a worker, or this answer has no room for them.
    items: tuple[ItemOrder, ...] | None = None
    close: bool = False  # with keep of a worker: nothing more will come; it ends once it has done what it has


class DesiredState(Message):
    """The answer to a heartbeat. An agent refuses an epoch below the highest it has seen."""

    epoch: int
    lease_s: float = 30.0
    interval_s: float = 2.0
    assignments: tuple[Assignment, ...] = ()
    more: bool = False  # did not fit: heartbeat again at once
    protocol: int = PROTOCOL_ABSENT
    #: Another agent has this node's identity now: end, and do not come back by yourself (exit code 78).
    evicted: bool = False
    #: Why this agent gets nothing new (a version too old or too new), in words; empty when all is well.
    refused: Sentence = ""
    prefetches: tuple[Prefetch, ...] = ()


class Wake(Message):
    """Heartbeat now."""


class NodeWish(Message):
    """What an admin wants of a node. The subject says which node and what: drain, undrain, cordon, forget, prefetch."""

    by: str  # a user's name
    reason: Sentence = ""
    deadline_s: float | None = (
        None  # with drain: seconds after which what still runs is moved; None: it may end by itself
    )
    force: bool = False  # with forget: also while something may run there that must never run twice
    prefetch: Prefetch | None = None  # with prefetch
    at: AwareDatetime


class NodeChange(Message):
    """One line of a node's history."""

    at: AwareDatetime
    what: str  # joined, online, suspect, lost, left, rebooted, cordoned, draining, drained, active, evicted, refused
    by: str = ""  # a user's name, or "scheduler"
    reason: Sentence = ""


class NodeRecord(Message):
    """A node as the scheduler sees it, whole: every event about a node carries this."""

    id: str
    name: Name = ""
    condition: NodeCondition = NodeCondition.ONLINE
    duty: NodeDuty = NodeDuty.ACTIVE
    reason: Sentence = ""  # of the duty
    by: str = ""  # who set the duty
    deadline: AwareDatetime | None = None  # of a drain
    since: AwareDatetime  # of the condition
    boot_id: str = ""
    session: str = ""
    refused: Sentence = ""  # why its agent gets nothing new (a version too old or too new); empty when it may
    problem: Sentence = ""  # as its last heartbeats had it
    troubles: tuple[AwareDatetime, ...] = ()  # lost jobs lately: enough of them and it is cordoned
    troubled_jobs: tuple[str, ...] = ()  # those jobs, in the same order
    prefetches: tuple[Prefetch, ...] = ()  # that are not done; the node may read what they name
    input_seq: int = 0  # stream sequence of the last wish that was decided before this
    #: An admin has removed it: it is listed nowhere any more. It joins anew if it is heard again.
    forgotten: bool = False
    history: tuple[NodeChange, ...] = ()  # the last HISTORY_KEPT, oldest first


HISTORY_KEPT = 20


class NodeChanged(Message):
    """What `wherry.fleet.node.>` carries."""

    node: NodeRecord
    epoch: int = 0


class Quota(Message):
    """The most that one owner's jobs may hold or wait with at a time; None is no limit."""

    cpus: float | None = Field(default=None, ge=0)
    memory: Amount | None = None
    gpus: int | None = Field(default=None, ge=0)
    running: int | None = Field(default=None, ge=0)  # jobs placed on nodes
    queued: int | None = Field(default=None, ge=0)  # more are refused at POST
    share: float = Field(default=1.0, gt=0, le=1000)  # weight between owners in the fair share


class QuotaSet(Message):
    """An admin's word about an owner's quota; None takes it away."""

    quota: Quota | None
    by: str
    at: AwareDatetime
