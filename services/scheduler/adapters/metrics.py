"""What the scheduler counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from shared.states import JobState

JOBS = Gauge("wherry_scheduler_jobs", "Active jobs by state.", ["state"])
QUEUE = Gauge("wherry_scheduler_queue_length", "Jobs that may be placed now and wait for a node.")
NODES = Gauge("wherry_scheduler_nodes", "Nodes that are there.")
LEADER = Gauge("wherry_scheduler_leader", "1 while this scheduler leads.")
DECISIONS = Counter("wherry_scheduler_decisions_total", "Events recorded, by name.", ["event"])
EPOCH = Gauge("wherry_scheduler_epoch", "Of this scheduler's last time of leading.")
POSITION = Gauge("wherry_scheduler_position", "Sequence of the log that it has taken in up to, also as standby.")
TAKEOVER = Histogram(
    "wherry_scheduler_takeover_seconds",
    "From winning the lease to the first decision: what had to be caught up with.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
DEPOSED = Counter("wherry_scheduler_deposed_total", "Times that this scheduler stopped leading because it had to.")
EXPLAINED = Counter("wherry_scheduler_explained_total", "Questions why a job waits, or whether it would.", ["kind"])
HEARTBEATS = Counter("wherry_scheduler_heartbeats_total", "Heartbeats taken in.")
SET_ASIDE = Counter("wherry_scheduler_set_aside_total", "What could not be taken in and is passed over.", ["kind"])
CONFLICTS = Counter("wherry_scheduler_conflicts_total", "Decisions refused because the job had moved on.")
NODE_CHANGES = Counter("wherry_scheduler_node_changes_total", "Nodes' records written, by what happened.", ["what"])
TURNS = Histogram(
    "wherry_scheduler_turn_seconds",
    "Time to decide, record and believe all that had arrived.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)


def show(jobs: dict[JobState, int], queue: int, nodes: int) -> None:
    """Set the gauges."""
    for state, count in jobs.items():
        JOBS.labels(state.value).set(count)
    QUEUE.set(queue)
    NODES.set(nodes)
