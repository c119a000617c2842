"""What a member of a connected gang is told, and the network that its container gets."""

import json
import socket
from typing import Any

import pytest

from services.node_agent.adapters.address import address_towards, check_ports
from services.node_agent.core import container, wiring
from services.node_agent.core.container import Place
from shared.errors import WherryError
from shared.fleet import Order, Peer, Wiring
from shared.spec import JobSpec

ROLES = (("chief", 0), ("server", 0), ("worker", 0), ("worker", 1))


def made(rank: int, network: Any = "host", roles: tuple[tuple[str, int], ...] = ROLES) -> Wiring:
    peers = tuple(
        Peer(role=role, index=index, rank=at, host=f"10.0.0.{at}", port=20_000 + at, ports=2)
        for at, (role, index) in enumerate(roles)
    )
    return Wiring(gang_id="g1", round=3, network=network, peers=peers, rank=rank)


def order(rank: int, network: Any = "host", **spec: Any) -> Order:
    full = JobSpec.model_validate({"image": "x", "command": "y"} | spec)
    return Order(job_id="j1", owner_id="u1", attempt=1, spec=full, seq=1, wiring=made(rank, network))


def test_every_member_knows_all_others_and_itself():
    found = wiring.environment(made(3))
    assert [peer["host"] for peer in json.loads(found["WHERRY_PEERS"])] == [f"10.0.0.{rank}" for rank in range(4)]
    assert (found["WHERRY_ADDRESS"], found["WHERRY_PORT"]) == ("10.0.0.3", "20003")


def test_tensorflow_is_told_its_cluster_with_servers_by_its_own_word():
    cluster = {
        "chief": ["10.0.0.0:20000"],
        "ps": ["10.0.0.1:20001"],
        "worker": ["10.0.0.2:20002", "10.0.0.3:20003"],
    }
    tasks = [("chief", 0), ("ps", 0), ("worker", 0), ("worker", 1)]
    for rank, (kind, index) in enumerate(tasks):
        told = json.loads(wiring.environment(made(rank))["TF_CONFIG"])
        assert told == {"cluster": cluster, "task": {"type": kind, "index": index}}


def test_an_evaluator_is_in_no_cluster_but_its_own():
    roles = (("chief", 0), ("evaluator", 0), ("worker", 0))
    told = [json.loads(wiring.environment(made(rank, roles=roles))["TF_CONFIG"]) for rank in range(3)]
    training = {"chief": ["10.0.0.0:20000"], "worker": ["10.0.0.2:20002"]}
    assert [one["cluster"] for one in told] == [training, {"evaluator": ["10.0.0.1:20001"]}, training]
    assert told[1]["task"] == {"type": "evaluator", "index": 0}


def test_pytorch_counts_the_workers_alone_and_all_where_there_are_none():
    second = wiring.environment(made(3))
    assert (second["MASTER_ADDR"], second["MASTER_PORT"]) == ("10.0.0.2", "20002")
    assert (second["RANK"], second["WORLD_SIZE"], second["LOCAL_RANK"]) == ("1", "2", "0")
    server = wiring.environment(made(1))
    assert server["MASTER_ADDR"] == "10.0.0.2"
    assert "RANK" not in server
    equal = wiring.environment(made(1, roles=(("node", 0), ("node", 1))))
    assert (equal["MASTER_ADDR"], equal["RANK"], equal["WORLD_SIZE"]) == ("10.0.0.0", "1", "2")


def test_an_address_of_ipv6_is_told_in_brackets():
    peers = tuple(one.model_copy(update={"host": "fd00::1"}) for one in made(0).peers)
    told = json.loads(wiring.environment(made(0).model_copy(update={"peers": peers}))["TF_CONFIG"])
    assert told["cluster"]["chief"] == ["[fd00::1]:20000"]


def test_the_users_own_variables_win():
    env = container.environment(order(2, env={"TF_CONFIG": "mine"}))
    assert env["TF_CONFIG"] == "mine"
    assert env["RANK"] == "0"


def test_on_a_bridge_a_member_has_that_network_and_its_own_name_in_it():
    place = Place("s", "n")
    plain = container.job_container(place, order(2, "bridge"), "i", pids_limit=9)
    body = wiring.connected(plain, order(2, "bridge"))
    assert body["HostConfig"]["NetworkMode"] == "wherry-gang-g1-3"
    assert body["NetworkingConfig"]["EndpointsConfig"] == {"wherry-gang-g1-3": {"Aliases": ["10.0.0.2"]}}
    assert body["Labels"] == plain["Labels"] | {wiring.LABEL: "wherry-gang-g1-3"}
    assert body["HostConfig"]["CapDrop"] == ["ALL"]
    assert wiring.network("x", {})["internal"]


def test_on_the_hosts_network_all_other_walls_stand():
    plain = container.job_container(Place("s", "n"), order(2), "i", pids_limit=9)
    body = wiring.connected(plain, order(2))
    assert body["HostConfig"] == plain["HostConfig"] | {"NetworkMode": "host"}
    assert (body["User"], body["HostConfig"]["CapDrop"]) == ("65534:65534", ["ALL"])


def test_a_job_of_its_own_has_no_network():
    alone = order(0).model_copy(update={"wiring": None})
    plain = container.job_container(Place("s", "n"), alone, "i", pids_limit=9)
    assert wiring.connected(plain, alone) == plain
    assert plain["HostConfig"]["NetworkMode"] == "none"
    assert "WHERRY_PEERS" not in container.environment(alone)


def test_a_machines_address_is_its_end_of_the_way_to_the_controller():
    assert address_towards("nats://user:word@127.0.0.1:4222,nats://10.9.9.9") == "127.0.0.1"
    assert not address_towards("nats://no-such-host.invalid:4222")


def test_a_port_that_something_else_has_is_found_before_the_program_is_started():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        peer = Peer(role="worker", index=0, rank=0, host="127.0.0.1", port=port, ports=1)
        wired = Wiring(gang_id="g1", round=1, network="host", peers=(peer,), rank=0)
        with pytest.raises(WherryError, match=f"Port {port} .*taken") as refused:
            check_ports(wired)
        assert refused.value.code == "runtime_error"
        check_ports(wired.model_copy(update={"network": "bridge"}))
        check_ports(wired.model_copy(update={"peers": (peer.model_copy(update={"host": "192.0.2.1"}),)}))  # not ours
    check_ports(wired)
