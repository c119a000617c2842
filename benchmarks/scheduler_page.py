"""The page benchmarks/scheduler.md, from the figures beside it."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.stack import dump, machine

PAGE = """# The scheduler, measured

Written by `python -m benchmarks.placement`, `python -m benchmarks.map_items` and `python -m benchmarks.scheduler_load`;
raw figures in [scheduler.json](scheduler.json). Times are CPU seconds of the process, not of the clock: the machine may
have been busy with other work, which makes caches colder and these figures worse.

{placement}

{items}

{load}
"""

PLACEMENT = """## Placement

Measured {when} on {machine} (load average {load_average}).

The fleet is a mixed lot: 4 to 64 CPUs, a tenth with 1 to 8 GPUs, 70 to 95 % of each node held by something that stays.
*Equal* jobs all need the same. *Different* ones hardly share a need: CPUs, memory and disk at random, a tenth want
GPUs, a third a tag.

**Filter, score and take** (`placement.Trial`), the exact best of all nodes; as the earlier experiment was measured that
gave 36,000 a second with vectors and 740 by looking at one node after the other. Goal at 10,000 nodes: 20,000 a second.

| nodes | jobs | placements/s | per placement |
| ---: | --- | ---: | ---: |
{kernel}

**A whole turn** (`machine.handle`) on a full fleet with a queue: 256 jobs have ended (fewer where the queue is shorter),
and the turn decides who of the queue takes their room: order by priority and fair share between 20 owners, quotas, the
reservation for the job at the head, placing, the jobs' next events. Recording is not in it.

| nodes | queue | jobs | placed per turn | a turn | placements/s | per placement | peak memory |
| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |
{decide}

The goal is met by placement itself, not by a whole turn, in which most of the time goes into the jobs' next events. With
equal jobs the length of the queue does not matter. Where hardly two jobs need the same, a turn also tries jobs that do
not fit after all, at most about twice as many as nodes have gained room; with 100,000 different needs the comparison of
all of them with the gained room, as vectors, and colder caches come on top."""

ITEMS = """## Items of map jobs

Measured {when} on {machine} (load average {load_average}).

One map job on 16 workers of four nodes, which end all that they have (32 items at most) between two heartbeats: taking
items in, sharing them out, the answers to heartbeats, and the events as bytes. Recording is not in it.

| items | added | ended | per item in all | largest event |
| ---: | ---: | ---: | ---: | ---: |
{items}"""

LOAD = """## The whole process

Measured {when} on {machine} (load average {load_average}): the real service and a real NATS server that syncs every
write, {nodes} simulated nodes on their own connections that heartbeat every {interval_s:g} s (and when they are woken), and
jobs handed in as the gateway does, for {seconds:.0f} s after a warm-up. Goal: 500 heartbeats a second and 500 job events a
second at under one core.

| what | |
| --- | ---: |
| heartbeats answered | {heartbeats_per_s:.0f} /s |
| entries of the jobs' log (created, placed, the node's report, the end) | {log_entries_per_s:.0f} /s |
| of them decided and recorded by the scheduler | {decisions_per_s:.0f} /s |
| CPU of the scheduler process | {cpu_per_s:.2f} cores |
| its memory | {memory_mib:.0f} MiB |"""


def write(folder: Path, part: str, figures: Any) -> Path:
    """Keep *figures* of *part* beside those of the others, and write the page anew; return its path."""
    path = folder / "scheduler.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with Path("/proc/loadavg").open() as loads:
        load_average = loads.read().split()[0]
    when = time.strftime("%Y-%m-%d")
    results[part] = {"when": when, "machine": machine(), "load_average": load_average, "figures": figures}
    dump(results, path)
    placement, items, load = results.get("placement"), results.get("items"), results.get("load")
    page = PAGE.format(
        placement=_placement(placement) if placement else "",
        items=_items(items) if items else "",
        load=_load(load) if load else "",
    )
    (folder / "scheduler.md").write_text(page.rstrip() + "\n")
    return folder / "scheduler.md"


def _placement(kept: dict[str, Any]) -> str:
    kernel = [
        f"| {one['nodes']:,} | {_kind(one)} | {one['per_s']:,.0f} | {one['us_per_decision']:.0f} µs |"
        for one in kept["figures"]["kernel"]
    ]
    decide = [
        f"| {one['nodes']:,} | {one['queue']:,} | {_kind(one)} | {one['placed_per_turn']:.0f} "
        f"| {one['ms_per_turn']:.1f} ms | {one['per_s']:,.0f} "
        f"| {one['us_per_decision']:.0f} µs | {one['peak_mib']:.0f} MiB |"
        for one in kept["figures"]["decide"]
    ]
    return PLACEMENT.format(kernel="\n".join(kernel), decide="\n".join(decide), **_head(kept))


def _items(kept: dict[str, Any]) -> str:
    rows = [
        f"| {one['items']:,} | {one['added_per_s']:,.0f} /s | {one['ended_per_s']:,.0f} /s "
        f"| {one['us_per_item']:.0f} µs | {one['largest_event_kib']:.0f} KiB |"
        for one in kept["figures"]
    ]
    return ITEMS.format(items="\n".join(rows), **_head(kept))


def _load(kept: dict[str, Any]) -> str:
    return LOAD.format(**_head(kept), **kept["figures"])


def _head(kept: dict[str, Any]) -> dict[str, str]:
    return {name: kept[name] for name in ("when", "machine", "load_average")}


def _kind(figures: dict[str, Any]) -> str:
    return "equal" if figures["equal"] else "different"
