"""What a member of a connected gang is told of the others, and the network that its container has."""

import json
from collections.abc import Mapping
from typing import Any

from shared.fleet import Order, Peer, Wiring

#: On a network, and on every container in it, of whichever agent of this engine: its name.
LABEL = "wherry.gang"
#: What TensorFlow calls roles that have other names here; all others are called as they are.
_TF_ROLES = {"server": "ps"}
_WORKER, _EVALUATOR = "worker", "evaluator"
#: The engine's name server asks others for what it does not know, past all walls: the one named here answers nothing.
#: That a member has not come yet is then known after two seconds, and not after ten.
_NAMES = {"Dns": ["127.0.0.1"], "DnsOptions": ["timeout:1", "attempts:2"]}


def environment(wiring: Wiring) -> dict[str, str]:
    """Return the variables by which a member finds the others.

    ``WHERRY_PEERS`` has all of them by rank, as JSON. ``TF_CONFIG`` is what TensorFlow reads, ``MASTER_ADDR``,
    ``MASTER_PORT``, ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` what PyTorch does: they count the members of the role
    ``worker`` alone, and all members where there is no such role. A member that is not counted has no rank among them.
    """
    me = wiring.peers[wiring.rank]
    counted = [peer for peer in wiring.peers if peer.role == _WORKER] or list(wiring.peers)
    found = {
        "WHERRY_PEERS": json.dumps([peer.model_dump(mode="json") for peer in wiring.peers], separators=(",", ":")),
        "WHERRY_ADDRESS": me.host,
        "WHERRY_PORT": str(me.port),
        "TF_CONFIG": json.dumps(_tf_config(wiring.peers, me), separators=(",", ":")),
        "MASTER_ADDR": counted[0].host,
        "MASTER_PORT": str(counted[0].port),
    }
    if me in counted:
        found |= {"RANK": str(counted.index(me)), "WORLD_SIZE": str(len(counted)), "LOCAL_RANK": "0"}
    return found


def _tf_config(peers: tuple[Peer, ...], me: Peer) -> dict[str, Any]:
    # An evaluator stands alone, in a cluster of its own: a coordinator waits for all in its cluster to be connected to.
    is_alone = me.role == _EVALUATOR
    cluster: dict[str, list[str]] = {}
    task: dict[str, str | int] = {}
    for peer in (one for one in peers if (one.role == _EVALUATOR) is is_alone):
        kind = _TF_ROLES.get(peer.role, peer.role)
        there = cluster.setdefault(kind, [])
        if peer is me:
            task = {"type": kind, "index": len(there)}
        there.append(f"[{peer.host}]:{peer.port}" if ":" in peer.host else f"{peer.host}:{peer.port}")
    return {"cluster": cluster, "task": task}


def network_name(wiring: Wiring) -> str:
    """Return the name of the network that the members of one round share on their engine, whoever's agent it is."""
    return f"wherry-gang-{wiring.gang_id}-{wiring.round}"


def network(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what the engine is asked for. Nothing leads out of such a network, not even to its own machine."""
    return {
        "name": name,
        "driver": "bridge",
        "check_duplicate": True,
        "internal": True,
        "options": {"com.docker.network.bridge.inhibit_ipv4": "true"},  # else members reach what the host offers there
        "labels": {**labels, LABEL: name},
    }


def connected(body: Mapping[str, Any], order: Order) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` for a member of a connected gang; of any other job as it is."""
    wiring = order.wiring
    if wiring is None:
        return dict(body)
    if wiring.network == "host":
        return {**body, "NetworkDisabled": False, "HostConfig": {**body["HostConfig"], "NetworkMode": "host"}}
    name = network_name(wiring)
    return {
        **body,
        "NetworkDisabled": False,
        "Labels": {**body["Labels"], LABEL: name},
        "HostConfig": {**body["HostConfig"], "NetworkMode": name} | _NAMES,
        "NetworkingConfig": {"EndpointsConfig": {name: {"Aliases": [wiring.peers[wiring.rank].host]}}},
    }
