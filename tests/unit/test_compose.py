"""The walls of docker-compose.yml, read as Compose itself reads it, and what is prepared for it."""

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.compose.images import REPOSITORY
from infra.compose.prepare import Prepared, docker_socket, env_text, prepare
from infra.compose.stack import program
from infra.docker.healthcheck import has_connection

OURS = {"gateway", "scheduler", "storage", "notifier", "node-agent"}
ENGINE_SOCKET = "/var/run/docker.sock"


@pytest.fixture(scope="module")
def engine_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("engine") / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        yield path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def prepared(home: Path, engine_socket: Path) -> Prepared:
    return prepare(home, {"WHERRY_DOCKER_SOCKET": str(engine_socket)}, {})


@pytest.fixture(scope="module")
def stack(prepared: Prepared) -> dict[str, Any]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("WHERRY_", "COMPOSE_"))}
    command = [*program(), "--env-file", str(prepared.env_file), "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def services(stack: dict[str, Any]) -> dict[str, Any]:
    return stack["services"]


def networks(service: dict[str, Any]) -> set[str]:
    return set(service.get("networks") or {})


def mounts(service: dict[str, Any]) -> list[dict[str, Any]]:
    return service.get("volumes") or []


def test_all_five_services_and_both_servers_are_there(services: dict[str, Any]) -> None:
    assert services.keys() >= OURS | {"nats", "mongo"}


def test_only_storage_shares_a_network_with_mongo(services: dict[str, Any]) -> None:
    assert networks(services["mongo"]) == {"db"}
    assert {name for name, service in services.items() if "db" in networks(service)} == {"mongo", "storage"}


def test_only_the_replica_sets_maker_is_inside_mongos_own_network(services: dict[str, Any]) -> None:
    inside = {name for name, service in services.items() if service.get("network_mode") == "service:mongo"}
    assert inside == {"mongo-init"}
    assert services["mongo-init"]["restart"] == "no"


def test_database_and_bus_have_no_way_out(stack: dict[str, Any]) -> None:
    assert stack["networks"]["db"]["internal"]
    assert stack["networks"]["bus"]["internal"]


def test_only_the_notifier_and_storage_call_out_and_only_the_gateway_is_in_front(services: dict[str, Any]) -> None:
    open_ended = {name: networks(service) - {"bus", "db"} for name, service in services.items()}
    assert {name: where for name, where in open_ended.items() if where} == {
        "gateway": {"front"},
        "notifier": {"out"},
        "sinks": {"out"},
        "storage": {"out"},
    }


def test_only_the_gateway_is_published_and_only_on_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published.keys() == {"gateway"}
    assert [(port["host_ip"], port["published"]) for port in published["gateway"]] == [("127.0.0.1", "8080")]
    assert not [name for name, service in services.items() if service.get("network_mode") == "host"]


def test_only_the_node_agent_has_the_engines_socket(services: dict[str, Any]) -> None:
    holders = {
        name
        for name, service in services.items()
        if any("docker.sock" in mount["source"] + mount["target"] for mount in mounts(service))
    }
    assert holders == {"node-agent"}


def test_nothing_else_of_the_host_is_mounted(services: dict[str, Any]) -> None:
    bound = {
        (name, mount["target"])
        for name, service in services.items()
        for mount in mounts(service)
        if mount["type"] != "volume"
    }
    assert bound == {("node-agent", ENGINE_SOCKET)}


def test_nobody_is_privileged_and_nobody_gains_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not service.get("privileged"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("devices"), name
        assert service.get("pid") is None, name
        assert service.get("ipc") is None, name


def test_nobody_is_root_but_the_one_that_hands_over_the_new_volume(services: dict[str, Any]) -> None:
    root = {name for name, service in services.items() if service["user"].split(":")[0] in {"0", "root"}}
    assert root == {"nats-volume"}
    helper = services["nats-volume"]
    assert helper["cap_add"] == ["CHOWN"]
    assert helper["network_mode"] == "none"
    assert helper["entrypoint"] == ["chown", "10001:10001", "/data"]
    assert [name for name, service in services.items() if service.get("cap_add")] == ["nats-volume"]


def test_every_root_file_system_is_read_only(services: dict[str, Any]) -> None:
    assert [name for name, service in services.items() if not service.get("read_only")] == []


def test_memory_processes_and_logs_are_limited(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert int(service["mem_limit"]) <= 2 * 1024**3, name
        assert 0 < service["pids_limit"] <= 4096, name
        assert service["logging"]["options"].keys() >= {"max-size", "max-file"}, name


def test_what_serves_comes_back_after_a_crash(services: dict[str, Any]) -> None:
    once = {name for name, service in services.items() if service["restart"] == "no"}
    assert once == {"nats-volume", "mongo-init", "bootstrap"}
    assert {service["restart"] for name, service in services.items() if name not in once} == {"unless-stopped"}


def test_a_service_gets_its_own_password_and_nobody_elses(services: dict[str, Any], home: Path) -> None:
    known = json.loads((home / "compose/nats/passwords.json").read_text())
    for name in OURS | {"bootstrap"}:
        environment = services[name]["environment"]
        user, password = environment["WHERRY_NATS_USER"], environment["WHERRY_NATS_PASSWORD"]
        assert known[user] == password
        others = {other for other_user, other in known.items() if other_user != user}
        assert others.isdisjoint(environment.values()), name


def test_only_storage_and_the_maker_of_its_user_know_the_way_into_mongo(services: dict[str, Any], home: Path) -> None:
    password = (home / "compose/mongo.password").read_text()
    knowing = {
        name
        for name, service in services.items()
        if any(password in (value or "") for value in service.get("environment", {}).values())
    }
    assert knowing == {"storage", "mongo-init"}


def test_each_image_is_built_for_its_own_service(services: dict[str, Any]) -> None:
    built = {name: services[name]["build"]["args"]["SERVICE"] for name in OURS}
    assert built == {name: name.replace("-", "_") for name in OURS}
    assert len({services[name]["image"] for name in OURS}) == len(OURS)


def test_preparing_again_changes_nothing(home: Path, prepared: Prepared, engine_socket: Path) -> None:
    def read() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (home / "compose").rglob("*") if file.is_file()}

    before = read()
    assert prepare(home, {"WHERRY_DOCKER_SOCKET": str(engine_socket)}, {}) == prepared
    assert read() == before


def test_no_stranger_on_the_host_reads_a_secret(home: Path, prepared: Prepared) -> None:
    assert stat.S_IMODE(prepared.env_file.parent.stat().st_mode) == 0o700
    for file in [*(home / "compose").glob("*.env"), prepared.credentials]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_value_that_would_end_its_line_is_refused() -> None:
    for value in ("a'b", "a\nb"):
        with pytest.raises(ValueError, match="WHERRY_X"):
            env_text({"WHERRY_X": value})


def test_an_engine_elsewhere_is_no_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="WHERRY_DOCKER_SOCKET"):
        docker_socket({"DOCKER_HOST": "tcp://10.0.0.1:2375"})
    with pytest.raises(FileNotFoundError):
        docker_socket({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})


# Rows as Linux writes them: 4222 is 107E in hex; state 01 is established, 06 is time-wait, 0A is listening.
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000 10001        0 61 2 0 20 4 30 10 -1\n"
TO_NATS = "   0: 020013AC:B4F2 030013AC:107E {state} " + REST
FROM_4222 = "   1: 020013AC:107E 030013AC:B4F2 01 " + REST


def test_a_connection_to_nats_is_seen_in_the_kernels_table() -> None:
    assert has_connection(HEAD + TO_NATS.format(state="01"), {4222})


@pytest.mark.parametrize("table", [HEAD, HEAD + TO_NATS.format(state="06"), HEAD + FROM_4222])
def test_none_an_ended_one_and_one_from_that_port_are_no_connection(table: str) -> None:
    assert not has_connection(table, {4222})
