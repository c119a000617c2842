"""The numbers that decisions depend on, with their units. Settings fill them in."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Now:
    """The time, as data. `at` is what people read; `mono`, seconds that never jump, is for leases and waits."""

    at: datetime
    mono: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound and weight of the core."""

    losses_max: int = 5  # infrastructure losses that a job survives
    backoff_failure_s: float = 10.0
    backoff_failure_max_s: float = 600.0
    backoff_loss_s: float = 1.0
    backoff_loss_max_s: float = 60.0
    backoff_jitter: float = 0.2  # the part of a back-off that varies from job to job, downwards
    killer_within_s: float = 30.0  # a node that dies so soon after a program's start may have died of it
    killer_nodes: int = 2  # different nodes that may die so before the job is no longer tried
    accept_s: float = 300.0  # a node that is heard takes an attempt within this time
    clock_slack_s: float = 60.0  # added to the limits that the node itself keeps
    obey_s: float = 300.0  # a node that is heard has ended an attempt so long after it was told to
    finishing_s: float = 3600.0  # for what an ended program left to be stored
    finishing_grace_s: float = 60.0  # the same, once nobody waits for it any more; then, for the node to obey
    replica_backoff_s: float = 1.0  # after a replica has failed by itself; doubles with each in a row
    replica_backoff_max_s: float = 300.0
    replica_well_s: float = 600.0  # a replica that ran for so long, or so long without an end: it begins anew
    orphan_s: float = 90.0  # agents remove containers that nobody knows within this time
    fence_fraction: float = 0.875  # of its lease, by which a cut-off node kills what is fenced (5/6, and clock drift)
    fence_kill_s: float = 3.0  # which takes its engine at most this long
    fence_unknown_s: float = 120.0  # the longest lease that a leader before may have granted
    delivered_beats: int = 5  # heartbeats in a row that say that a report is in the log, where it is not
    delivered_s: float = 10.0  # and for how long
    lookups_per_turn: int = 100
    lease_s: float = 30.0
    interval_s: float = 2.0
    heartbeats_per_s_max: float = 500.0  # of the whole fleet
    fresh_s: float = 10.0  # a node silent for longer gets nothing new
    mass_loss_fraction: float = 0.55  # Kubernetes' figure for a zone that is our own fault rather than its nodes'
    mass_loss_nodes_min: int = 3
    mass_loss_patience_s: float = 600.0  # after which even most of the fleet is believed to be gone
    stall_s: float = 5.0  # a longer gap between ticks means that we, not the nodes, were away
    node_forgotten_s: float = 3600.0
    condition_hold_s: float = 30.0  # a flapping node's condition changes once in so long, but for being lost
    flap_window_s: float = 300.0  # a node that comes back twice within this flaps
    steady_beats: int = 3  # heartbeats in a row after which a lost node is back
    losses_per_tick_min: int = 10  # nodes that are given up in one tick, and so a bound on what is placed again
    losses_per_tick_fraction: float = 0.02  # the same, of a large fleet
    suspects_per_tick: int = 500
    trouble_jobs_min: int = 3  # jobs lost on one node within the window after which it is cordoned
    trouble_window_s: float = 600.0
    placements_per_turn: int = 400
    share_half_life_s: float = 86400.0  # in which what an owner has used counts half as much
    reserve_outright_s: float = 600.0  # at the head for so long, and nothing more goes into the room that is kept
    classes_per_turn: int = 1000  # different requirements that are tried in one turn
    pending_after_s: float = 5.0  # shorter waits are not worth an event
    pending_never_after_s: float = 1.0  # but what no node could ever run, or a quota keeps back, is said soon
    pending_every_s: float = 5.0
    pending_per_tick: int = 100
    retry_all_s: float = 5.0  # small gains of memory add up: everything is tried again this often
    gpu_free_fraction_min: float = 0.5  # of a GPU's memory, when the job names no amount
    gain_bytes_min: int = 16 * 1024 * 1024  # a smaller rise in free memory is noise
    answer_bytes_max: int = 600_000  # start orders in one heartbeat's answer; a NATS message holds 1 MiB
    gang_ports: tuple[int, int] = (20_000, 29_999)  # the first and the last of those for gangs on nodes' own networks
    item_bytes_max: int = 64 * 1024  # an item as it is given, as JSON
    items_bytes_max: int = 64 * 1024 * 1024  # of all items of a job, as they are given; see `ItemSpec.bytes`
    items_event_bytes_max: int = 700_000  # one event about items, with the job that it is about
    items_hand_bytes_max: int = 64 * 1024  # what a worker has, as JSON, but for one item
    items_answer_bytes_max: int = 300_000  # items in one heartbeat's answer, beside the orders
    items_ahead_s: float = 1.0  # work that a worker has ahead of it, so that it need not wait for more
    items_ahead_first: int = 4  # items that it has, before it is known how long one takes
    items_ahead_min: int = 2
    items_ahead_max: int = 32
    workers_queued_max: int = 32  # of one job that wait for room at a time; others follow once they are placed
    worker_worth_s: float = 1.0  # work for which another worker is started
    worker_idle_s: float = 30.0  # a worker without items is kept so long, for more may come
    worker_idle_crowded_s: float = 2.0  # the same while others wait for room
    worker_close_s: float = 60.0  # one that is to end by itself has done so
    worker_backoff_s: float = 1.0  # after a worker has failed; doubles with each in a row
    worker_backoff_max_s: float = 300.0
    worker_failures_max: int = 3  # in a row, without the end of an item, before the job has failed
    wake_again_s: float = 0.5  # a wake may be lost; until then one is enough

    def interval_for(self, nodes: int) -> float:
        """Return the seconds between two heartbeats of one node in a fleet of *nodes*."""
        return max(self.interval_s, nodes / self.heartbeats_per_s_max)

    def lease_for(self, nodes: int) -> float:
        """Return the seconds of silence after which a node is lost."""
        return max(self.lease_s, 3 * self.interval_for(nodes))

    def fresh_for(self, nodes: int) -> float:
        """Return the seconds of silence after which a node gets nothing new."""
        return max(self.fresh_s, 2 * self.interval_for(nodes))
