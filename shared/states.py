"""The words for where a job, an attempt or a delivery is, and for how it ended.

Which move is legal is a rule and lives in the scheduler's core.
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. The last four are final: nothing leaves them."""

    QUEUED = "queued"
    PLACED = "placed"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class AttemptState(StrEnum):
    """Where one try of a job on one node is. The last five are final."""

    PLACED = "placed"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


JOB_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT})
ATTEMPT_TERMINAL = frozenset(
    {
        AttemptState.SUCCEEDED,
        AttemptState.FAILED,
        AttemptState.CANCELLED,
        AttemptState.TIMED_OUT,
        AttemptState.LOST,
    }
)


class ItemState(StrEnum):
    """Where an item of a map job is. That a worker has it is not written down: only what has come of it counts."""

    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class JobEventName(StrEnum):
    """The last token of ``wherry.job.<owner>.<job_id>.<event>``. Each carries the whole job after it."""

    CREATED = "created"  # by the gateway; all others by the scheduler
    PENDING = "pending"  # still queued; the reasons changed
    PLACED = "placed"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    REMARKED = "remarked"  # something worth telling, which moved nothing (a node fell silent, a limit was near)
    CANCELLING = "cancelling"  # a cancel was asked for and the node has been told
    ITEMS = "items"  # items of a map job came, or came to an end
    UPDATED = "updated"  # a service is to have other replicas, or another spec
    REQUEUED = "requeued"  # an attempt ended and another will be made
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class AttemptEventName(StrEnum):
    """The last token of ``wherry.attempt.<node_id>.<job_id>.<event>``, what a node reports."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    FINISHED = "finished"
    ITEMS = "items"  # what has become of items that a worker had


class EndReason(StrEnum):
    """Why an attempt or a job ended as it did, for machines. ``message`` beside it is for people."""

    EXIT_CODE = "exit_code"
    OOM = "oom"
    COMMAND_NOT_FOUND = "command_not_found"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_PULL_FAILED = "image_pull_failed"
    IMAGE_NO_COMMAND = "image_no_command"
    BAD_SOURCE = "bad_source"
    INPUT_MISSING = "input_missing"
    STAGE_IN_FAILED = "stage_in_failed"
    UPLOAD_FAILED = "upload_failed"
    RUNTIME_ERROR = "runtime_error"
    PULL_TIMEOUT = "pull_timeout"
    STAGE_IN_TIMEOUT = "stage_in_timeout"
    RUN_TIMEOUT = "run_timeout"
    QUEUE_TIMEOUT = "queue_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    DISK = "disk"
    CANCELLED_BY_USER = "cancelled_by_user"
    NODE_LOST = "node_lost"
    NODE_REBOOTED = "node_rebooted"
    NODE_DRAINED = "node_drained"
    AGENT_LOST_CONTAINER = "agent_lost_container"
    REPORT_MISSING = "report_missing"  # the node says it has ended, and its last report never came
    FENCED = "fenced"  # cut off: the node stopped it by itself before another node could start it
    UNKILLABLE = "unkillable"  # SIGKILL did not end it
    FINISHING_TIMEOUT = "finishing_timeout"  # what it left could not be stored in time
    NEEDS_FAILED = "needs_failed"  # a job that it needs did not end as it must
    GANG_FAILED = "gang_failed"  # another member of the gang ended it
    GANG_TIMEOUT = "gang_timeout"  # not all members ran in time
    ITEMS_FAILED = "items_failed"  # items of the map job came to nothing
    ITEM_FAILED = "item_failed"  # the program said so, or failed at it
    ITEM_TIMEOUT = "item_timeout"
    UNHEALTHY = "unhealthy"  # a replica was not ready in time, or stopped answering
    SUSPECTED_NODE_KILLER = "suspected_node_killer"  # two nodes died soon after they had started its program


#: Reasons that are nobody's fault but the machines': they use the budget of infrastructure losses.
INFRASTRUCTURE_REASONS = frozenset(
    {
        EndReason.NODE_LOST,
        EndReason.NODE_REBOOTED,
        EndReason.NODE_DRAINED,
        EndReason.AGENT_LOST_CONTAINER,
        EndReason.REPORT_MISSING,
        EndReason.FENCED,
        EndReason.UNKILLABLE,
        EndReason.FINISHING_TIMEOUT,
        EndReason.RUNTIME_ERROR,
        EndReason.UPLOAD_FAILED,
        EndReason.GANG_TIMEOUT,
    }
)


class PendingCode(StrEnum):
    """Why a queued job is not placed."""

    NO_NODES = "no_nodes"
    CPUS = "cpus"
    MEMORY = "memory"
    DISK = "disk"
    GPUS = "gpus"
    GPU_MEMORY = "gpu_memory"
    ARCH = "arch"
    TAGS = "tags"
    CLUSTER = "cluster"
    NODE_NAME = "node_name"
    RUNTIME = "runtime"
    NETWORK = "network"  # it cannot give a job the network that it wants
    NODE_UNHEALTHY = "node_unhealthy"
    BACKOFF = "backoff"
    NODE_CORDONED = "node_cordoned"  # by an admin, by drain, or after repeated trouble
    NEEDS = "needs"  # another job has to end first
    QUOTA = "quota"  # the owner's share of the fleet is used up
    BEHIND_OTHERS = "behind_others"  # it fits, and others are before it
    RESERVED = "reserved"  # it fits, and the room is kept for a larger job ahead
    GANG = "gang"  # some members fit, not all at once
    GANG_NETWORK = "gang_network"  # they would fit, but not where they reach each other
    NO_ITEMS = "no_items"  # a map job that nothing has been given to
    IDLE = "idle"  # a service that nobody asks; a request brings it back


class NodeCondition(StrEnum):
    """Whether a node is heard."""

    ONLINE = "online"
    SUSPECT = "suspect"  # silent for longer than it should be: gets nothing new
    LOST = "lost"  # silent past its lease: its attempts are given up
    LEFT = "left"  # said goodbye


class NodeDuty(StrEnum):
    """Whether a node is to get work, as a person or the scheduler has decided."""

    ACTIVE = "active"
    CORDONED = "cordoned"  # what runs goes on, nothing new
    DRAINING = "draining"  # nothing new; what still runs at the deadline is stopped and placed elsewhere
    DRAINED = "drained"  # draining is over: it is empty
