"""The golden container: every flag that keeps a job in its place, whatever its spec says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.core.container import (
    Key,
    Place,
    has_command,
    job_container,
    key_of,
    staging_container,
    volumes,
)
from shared.fleet import Order
from shared.spec import JobSpec, Resources

PLACE = Place("s1", "n1")


def order(gpus: tuple[str, ...] = (), **spec: Any) -> Order:
    return Order(job_id="j1", owner_id="u1", attempt=2, spec=JobSpec(**{"image": "i", **spec}), gpus=gpus, seq=1)


def test_the_golden_container() -> None:
    spec = {"command": "sh run.sh", "env": {"A": "1", "HOME": "/own"}, "resources": {"cpus": 0.5, "memory": "64MiB"}}
    labels = {
        "wherry.stack": "s1", "wherry.node": "n1", "wherry.job": "j1", "wherry.attempt": "2", "wherry.owner": "u1",
    }  # fmt: skip

    def mount(target: str, name: str, *, read_only: bool) -> dict[str, Any]:
        return {
            "Type": "volume", "Target": target, "Source": f"wherry-s1-j1-2-{name}", "ReadOnly": read_only,
            "VolumeOptions": {"NoCopy": True, "Labels": labels},
        }  # fmt: skip

    assert job_container(PLACE, order(**spec), "sha256:abc", pids_limit=256) == {
        "Image": "sha256:abc",
        "Entrypoint": ["sh", "-c", "sh run.sh"],
        "Cmd": [],
        "Env": [
            "WHERRY_WORKSPACE=/workspace", "WHERRY_INPUTS=/inputs", "WHERRY_OUTPUTS=/outputs",
            "WHERRY_PARAMS=/run/wherry/params.json", "WHERRY_JOB_ID=j1", "WHERRY_ATTEMPT=2", "WHERRY_CPUS=0.5",
            "HOME=/own", "XDG_CACHE_HOME=/tmp", "PYTHONUNBUFFERED=1", "A=1", "NVIDIA_VISIBLE_DEVICES=void",
        ],
        "WorkingDir": "/workspace",
        "User": "65534:65534",
        "Labels": labels | {"wherry.role": "job"},
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "HostConfig": {
            "NanoCpus": 500_000_000,
            "Memory": 64 * 2**20,
            "MemorySwap": 64 * 2**20,
            "PidsLimit": 256,
            "ShmSize": 64 * 2**20,
            "OomScoreAdj": 500,
            "Ulimits": [{"Name": "nofile", "Soft": 8192, "Hard": 8192}, {"Name": "core", "Soft": 0, "Hard": 0}],
            "DeviceRequests": [],
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "32m", "max-file": "2"}},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/tmp": "rw,noexec,nosuid,nodev,mode=1777,size=268435456",
                "/inputs": "ro,noexec,nosuid,nodev,mode=555,size=4096",
            },
            "NetworkMode": "none",
            "IpcMode": "private",
            "Init": True,
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Mounts": [
                mount("/workspace", "workspace", read_only=False),
                mount("/outputs", "outputs", read_only=False),
                mount("/run/wherry", "run", read_only=True),
            ],
        },
    }  # fmt: skip


WALLS = (
    "CapDrop", "SecurityOpt", "Privileged", "ReadonlyRootfs", "NetworkMode", "IpcMode", "PidsLimit", "OomScoreAdj",
    "Ulimits", "LogConfig", "RestartPolicy",
)  # fmt: skip


@given(
    st.builds(
        JobSpec,
        image=st.just("i"),
        command=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        env=st.dictionaries(st.from_regex(r"\A[A-Za-z_]{1,9}\Z"), st.just("x"), max_size=3),
        tmp_exec=st.booleans(),
        resources=st.builds(Resources, cpus=st.floats(0.001, 64), tmp=st.integers(0, 2**40)),
    )
)
def test_no_spec_moves_a_wall(spec: JobSpec) -> None:
    golden = job_container(PLACE, order(), "i", pids_limit=256)
    made = job_container(PLACE, order(**spec.model_dump(exclude={"image"})), "i", pids_limit=256)
    assert {name: made["HostConfig"][name] for name in WALLS} == {name: golden["HostConfig"][name] for name in WALLS}
    assert made["User"] == "65534:65534"
    assert made["NetworkDisabled"] is True
    assert made["HostConfig"].keys() == golden["HostConfig"].keys()
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["Env"]
    assert not made["HostConfig"]["Tmpfs"]["/tmp"].endswith("size=0"), "tmpfs takes 0 for no limit"


def test_gpus_are_given_by_uuid() -> None:
    made = job_container(PLACE, order(gpus=("GPU-1", "GPU-2")), "i", pids_limit=256)
    assert made["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu"]]}
    ]
    assert not any(value.startswith("NVIDIA_VISIBLE_DEVICES") for value in made["Env"])


def test_without_a_command_the_image_s_own_runs() -> None:
    made = job_container(PLACE, order(), "i", pids_limit=256)
    assert "Entrypoint" not in made
    assert "Cmd" not in made
    listed = job_container(PLACE, order(command=["a", "b c"]), "i", pids_limit=256)
    assert listed["Entrypoint"] == ["a", "b c"]


@pytest.mark.parametrize(
    ("command", "config", "expected"),
    [("x", {}, True), (None, {}, False), (None, {"Cmd": ["a"]}, True), (None, {"Entrypoint": ["a"]}, True)],
)
def test_whether_there_is_anything_to_run(command: str | None, config: dict[str, Any], *, expected: bool) -> None:
    assert has_command(order(command=command), config) is expected


def test_the_staging_container_has_the_same_volumes_and_could_not_run() -> None:
    staging = staging_container(PLACE, order(), "i")
    expected = volumes(PLACE, Key("j1", 2), with_inputs=False)
    assert {mount["Source"] for mount in staging["HostConfig"]["Mounts"]} == set(expected.values())
    assert not any(mount["ReadOnly"] for mount in staging["HostConfig"]["Mounts"])
    assert staging["Entrypoint"] == ["/never-started"]
    assert staging["HostConfig"]["NetworkMode"] == "none"


def test_labels_name_the_attempt() -> None:
    assert key_of(PLACE.labels(Key("j1", 12), "u")) == Key("j1", 12)
    assert key_of({"wherry.job": "j1"}) is None
    assert key_of({"wherry.job": "j1", "wherry.attempt": "x"}) is None
