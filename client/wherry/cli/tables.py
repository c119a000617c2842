"""Jobs, nodes and files as people read them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.wherry import models
from client.wherry.cli.words import STATE_STYLES, ago, between, plain, plural, size

#: What must be whole, on however narrow a terminal: it is typed or copied.
_MIN_WIDTHS = {"JOB": 26, "STATE": 9}


def state(name: str) -> Text:
    """Return a job's state in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


def jobs(found: Iterable[models.Job], now: datetime) -> Table:
    """Return one line a job."""
    table = _table("JOB", "NAME", "STATE", "PROGRESS", "NODE", "CREATED", "TOOK")
    for job in found:
        done = f"{job.progress.fraction:.0%}" if job.progress and not job.is_terminal else ""
        table.add_row(
            job.job_id,
            Text(plain(job.name)),
            state(job.state),
            done,
            Text(plain(job.node or "")),
            ago(job.created_at, now),
            between(job.created_at, job.ended_at),
        )
    return table


def job(found: models.Job, now: datetime) -> RenderableType:
    """Return all that is worth knowing about a job."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(found, now):
        facts.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(plain(value)))
    return Group(facts, "", _attempts(found)) if found.attempts else facts


def _facts(job: models.Job, now: datetime) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = [("job", job.job_id), ("name", job.name), ("state", state(job.state))]
    if job.error:
        facts.append(("why", f"{job.error.message} ({job.error.reason})"))
    facts += [("waits for", f"{reason.message} ({plural(reason.nodes, 'node')})") for reason in job.pending]
    if job.progress:
        facts.append(("progress", f"{job.progress.fraction:.0%} {job.progress.message}".strip()))
    facts += [("owner", job.owner), ("node", job.node or "")]
    facts += [("created", ago(job.created_at, now)), ("ended", ago(job.ended_at, now))]
    facts.append(("took", between(job.created_at, job.ended_at)))
    if job.outputs:
        facts.append(("outputs", f"{plural(job.outputs.files, 'file')}, {size(job.outputs.bytes)}"))
    facts.append(("labels", ", ".join(job.labels)))
    facts += [("remark", remark) for remark in job.remarks]
    return [(name, value) for name, value in facts if value]


def _attempts(job: models.Job) -> Table:
    table = _table("ATTEMPT", "NODE", "STATE", "EXIT", "RAN", "WHY")
    for attempt in job.attempts:
        table.add_row(
            str(attempt.number),
            Text(plain(attempt.node)),
            state(attempt.state),
            "" if attempt.exit_code is None else str(attempt.exit_code),
            between(attempt.running_at, attempt.ended_at),
            Text(plain(attempt.error.message if attempt.error else "")),
        )
    return table


def nodes(found: Iterable[models.Node], now: datetime) -> Table:
    """Return one line a machine."""
    table = _table("NODE", "ID", "STATE", "CPUS", "MEMORY", "GPUS", "BUSY", "RUNNING", "TAGS", "SEEN")
    for node in found:
        table.add_row(
            Text(plain(node.name)),
            node.id,
            Text("online", "green") if node.online else Text("offline", "red"),
            f"{node.capacity.get('cpus', 0):g}",
            size(node.capacity.get("memory", 0)),
            _gpus(node.capacity.get("gpus") or []),
            f"{node.usage.get('cpu_percent', 0):.0f} %",
            str((node.model_extra or {}).get("running", "")),
            Text(plain(", ".join(node.tags))),
            ago(node.seen_at, now),
        )
    return table


def _gpus(gpus: list[dict[str, Any]]) -> str:
    return ", ".join(plain(str(gpu.get("name", "GPU"))) for gpu in gpus) or "-"


def status(found: models.Status) -> Table:
    """Return the system at a glance."""
    facts = Table.grid(padding=(0, 2))
    for name, value in found.model_dump(mode="json", exclude_unset=True).items():
        facts.add_row(Text(_spaced(name), style="dim"), Text(plain(count_words(value))))
    return facts


def count_words(value: Any) -> str:
    """Return an answer's value in words: counts as "3 total: 2 succeeded, 1 failed"."""
    if isinstance(value, dict):
        counts = [f"{item} {_spaced(key)}" for key, item in value.items() if not isinstance(item, dict)]
        below = [count_words(item) for item in value.values() if isinstance(item, dict) and item]
        return ": ".join([", ".join(counts), *below])
    if isinstance(value, list):
        return ", ".join(count_words(item) for item in value) or "none"
    return str(value)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, header_style="dim", no_wrap=True, min_width=_MIN_WIDTHS.get(column))
    return table
