"""Where the members of a connected gang reach each other: on one engine by a bridge, else by the nodes' own network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.scheduler.core import placement
from services.scheduler.core.fleet.columns import Columns, Mask
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import Need, inputs_of
from services.scheduler.core.placement import Placement, Trial
from services.scheduler.core.words import count
from shared.job import PendingReason
from shared.spec import JobSpec
from shared.states import PendingCode

Network = Literal["bridge", "host"]


@dataclass(frozen=True, slots=True)
class Seating:
    """A place for each member, by rank, and what connects them; None where nothing is to."""

    places: tuple[Placement, ...]
    network: Network | None = None


def seat(
    columns: Columns, trial: Trial, need: Need, specs: Sequence[JobSpec], failed: frozenset[str]
) -> Seating | None:
    """Place all members of a gang, or none.

    Members that are to reach each other go to nodes that do: those of one engine, else those with an address. Who asks
    for `spread` has them on several nodes where that can be.

    Args:
        columns: the fleet.
        trial: what is free; what is chosen is taken from it.
        need: of the gang.
        specs: what each member runs, by rank.
        failed: nodes where the gang came to nothing before.
    """
    if not need.connected:
        places = _seat(trial, need, specs, failed, None)
        return Seating(places) if places is not None else None
    for rows in _groups(columns, need, failed):
        if _has_room(need, rows, columns.cpus, columns.memory):
            places = _seat(trial, need, specs, failed, rows)
            if places is not None:
                return Seating(places, _network(columns, need, places))
    return None


def rows_for(
    columns: Columns, trial: Trial, need: Need, specs: Sequence[JobSpec], failed: frozenset[str]
) -> Mask | None:
    """Return the rows on which `seat` would place a connected gang; None if it would not. Nothing is taken."""
    mark = trial.mark()
    found = seat(columns, trial, need, specs, failed)
    trial.undo(mark)
    if found is None:
        return None
    rows = np.zeros(len(columns.nodes), dtype=np.bool_)
    rows[[columns.slots[place.node] for place in found.places]] = True
    return rows


def could_hold(columns: Columns, need: Need, heard_after: float, limits: Limits) -> bool:
    """Return whether a gang would fit at once if nothing of ours were on the nodes, where its members are connected."""
    if not need.connected:
        return placement.could_hold(columns, need, heard_after, limits)
    return any(
        placement.could_hold(columns, need, heard_after, limits, rows)
        for rows in _groups(columns, need, frozenset())
        if _has_room(need, rows, columns.total_cpus, columns.total_memory)
    )


def not_connected(columns: Columns, trial: Trial, need: Need, specs: Sequence[JobSpec]) -> PendingReason | None:
    """Return what to say of a connected gang that would fit at once, if its members had not to reach each other."""
    mark = trial.mark()
    places = _seat(trial, need, specs, frozenset(), None)
    trial.undo(mark)
    if places is None:
        return None
    able = sum(_is_reachable(node, need) for node in columns.nodes if node is not None and node.beat is not None)
    nodes = count(able, "node offers", "nodes offer")
    what = (
        "nodes with an address that the others reach (wherry-agent --address)"
        if need.runtime == "process"
        else "nodes whose containers may have the host's network (wherry-agent --host-network)"
    )
    message = (
        f"its {need.jobs} members would fit, and not where they reach each other: it takes room for all of them on one "
        f"engine, or on {what}; {nodes} that"
    )
    return PendingReason(code=PendingCode.GANG_NETWORK, nodes=0, message=message)


def _seat(
    trial: Trial, need: Need, specs: Sequence[JobSpec], failed: frozenset[str], rows: Mask | None
) -> tuple[Placement, ...] | None:
    mark = trial.mark()
    places: list[Placement] = []
    for member, spec in zip(need.members, specs, strict=True):
        found = trial.place(member, spec.image, failed, inputs_of(spec), rows)
        if found is None:
            trial.undo(mark)
            return None
        places.append(found)
    return tuple(places)


def _groups(columns: Columns, need: Need, failed: frozenset[str]) -> Iterator[Mask]:
    """Give the rows of which any two reach each other, those first that are to be preferred."""
    nodes = [node for node in columns.nodes if node is not None and node.beat is not None]
    able = [node for node in nodes if need.runtime in node.info.runtimes]
    engines = _engines(columns, able, need, failed) if need.runtime == "docker" else []
    reachable = [node for node in able if _is_reachable(node, need)]
    # An address of the machine itself is reached from that machine only, which is the controller's.
    near = [node for node in reachable if _is_loopback(node.info.address)]
    far = [node for node in reachable if not _is_loopback(node.info.address)]
    groups = [*engines, far, near] if need.policy == "pack" else [far, near, *engines]
    for group in filter(None, groups):
        rows = np.zeros(len(columns.nodes), dtype=np.bool_)
        rows[[node.slot for node in group]] = True
        yield rows


def _engines(columns: Columns, nodes: Sequence[Node], need: Need, failed: frozenset[str]) -> list[list[Node]]:
    """Return the nodes of each engine: the fullest first, or the emptiest for who wants to spread."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        if node.info.engine_id:
            found.setdefault(node.info.engine_id, []).append(node)
    sign = 1 if need.policy == "pack" else -1

    def rank(group: list[Node]) -> tuple[bool, float]:
        free = sum(float(columns.cpus[node.slot]) for node in group)
        return any(node.id in failed for node in group), sign * free

    return sorted(found.values(), key=rank)


def _is_reachable(node: Node, need: Need) -> bool:
    """Return whether members on *node* are reached under its address. A plain process has the machine's network."""
    return bool(node.info.address) and (need.runtime == "process" or node.info.host_network)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")


def _has_room(need: Need, rows: Mask, cpus: np.ndarray, memory: np.ndarray) -> bool:
    """Return False if *rows* have not enough together: quickly, for most of many engines."""
    whole = need.whole()
    return bool(cpus[rows].sum() >= whole.ucpus and memory[rows].sum() >= whole.memory)


def _network(columns: Columns, need: Need, places: Sequence[Placement]) -> Network:
    nodes = (columns.nodes[columns.slots[place.node]] for place in places)
    engines = {node.info.engine_id for node in nodes if node is not None}
    return "bridge" if need.runtime == "docker" and len(engines) == 1 and "" not in engines else "host"
