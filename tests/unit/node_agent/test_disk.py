"""What programs have written, from an engine's answer, and what follows from it."""

from services.node_agent.core import facts as f
from services.node_agent.core.container import Key
from services.node_agent.core.disk import in_units, used_by_attempts
from shared.states import AttemptState, EndReason
from tests.unit.node_agent.test_machine import FACTS, KEY, T0, TO_RUNNING, acts, after, reports

LABELS = {"wherry.job": "j1", "wherry.attempt": "2", "wherry.role": "job"}


def mount(name: str, *, is_writable: bool = True) -> dict[str, object]:
    return {"Type": "volume", "Name": name, "RW": is_writable}


def test_what_counts_are_the_volumes_that_the_program_may_write_to_and_its_own_layer() -> None:
    engine = {
        "Volumes": [
            {"Name": "w", "UsageData": {"Size": 10}},
            {"Name": "declared-by-the-image", "UsageData": {"Size": 100}},
            {"Name": "inputs", "UsageData": {"Size": 1000}},
            {"Name": "unknown", "UsageData": {"Size": -1}},
            {"Name": "unasked", "UsageData": None},
        ],
        "Containers": [
            {
                "Labels": LABELS,
                "SizeRw": 1,
                "Mounts": [
                    mount("w"), mount("declared-by-the-image"), mount("inputs", is_writable=False), mount("unknown"),
                    mount("unasked"), mount("gone"), {"Type": "tmpfs", "RW": True},
                ],
            },
            {"Labels": LABELS | {"wherry.role": "staging", "wherry.attempt": "3"}, "Mounts": [mount("w")]},
            {"Labels": None, "SizeRw": 7, "Mounts": None},
        ],
    }  # fmt: skip
    assert used_by_attempts(engine) == {Key("j1", 2): 111}
    assert used_by_attempts({"Volumes": None, "Containers": None}) == {}


def test_over_its_disk_a_running_program_is_stopped_once_and_the_end_says_the_numbers() -> None:
    machine = after(*TO_RUNNING)
    over = f.OverDisk(KEY, 11 * 1024**3)
    assert acts(machine.handle(over, T0)) == ["Save", "Stop"]
    assert machine.handle(over, T0) == []
    assert "Collect" in acts(machine.handle(FACTS["exited"], T0)), "what it left is kept"
    ((_, said),) = reports(machine.handle(FACTS["collected"], T0))
    assert (said.state, said.error.reason) == (AttemptState.FAILED, EndReason.DISK)
    assert "11.0 GiB and was promised 10.0 GiB" in said.error.message


def test_a_program_that_has_ended_or_was_told_to_is_not_over_its_disk() -> None:
    for names in ((*TO_RUNNING, "exited"), (*TO_RUNNING, "stop"), ("start",), ()):
        assert after(*names).handle(f.OverDisk(KEY, 2**60), T0) == []


def test_bytes_for_people() -> None:
    assert [in_units(size) for size in (0, 1023, 1024, 1536 * 1024, 2**50)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "1024.0 TiB",
    ]  # fmt: skip
