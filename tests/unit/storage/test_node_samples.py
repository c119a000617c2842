"""What nodes use over time: a bounded number of samples however large the fleet."""

from datetime import UTC, datetime, timedelta

from services.storage.core import fleet as f
from shared.fleet import Capacity, Heartbeat, HeldAttempt, NodeInfo, Usage

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def heartbeat(**usage: float) -> Heartbeat:
    held = (HeldAttempt(job_id="j1", attempt=1, state="running"), HeldAttempt(job_id="j2", attempt=1, state="placed"))
    return Heartbeat(
        node=NodeInfo(id="n1", name="box"), session="s", boot_id="b", seq=1, at=NOW, attempts=held,
        capacity=Capacity(cpus=4, memory=100, disk=9), usage=Usage.model_validate(usage),
    )  # fmt: skip


def test_a_sample_tells_what_is_used_and_how_many_jobs_run():
    sample = f.sample("n1", heartbeat(cpu_percent=50, memory_available=30), NOW, 60)
    assert sample["values"] == {"cpu": 50, "load": 0, "memory": 70, "disk_free": 0, "running_jobs": 1}


def test_two_samples_of_one_period_are_one_and_those_of_the_next_another():
    ids = [f.sample("n1", heartbeat(), NOW + timedelta(seconds=s), 60)["_id"] for s in (0, 59, 60)]
    assert ids[0] == ids[1] != ids[2]


def test_a_large_fleet_keeps_no_more_than_a_small_one_can():
    for nodes in (1, 300, 10_000, 100_000):
        kept = nodes * f.SAMPLES_KEPT_DAYS * 86400 / f.sample_period_s(nodes)
        assert kept <= f.SAMPLES_PER_S * f.SAMPLES_KEPT_DAYS * 86400 * 1.01
