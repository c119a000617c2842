"""Jobs, nodes and files as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.wherry import models
from client.wherry.cli.timeline import timeline, why
from client.wherry.cli.words import STATE_STYLES, ago, between, duration, plain, plural, size

#: What must be whole, on however narrow a terminal: it is typed or copied.
_MIN_WIDTHS = {"JOB": 26, "ARTIFACT": 26, "STATE": 9}
#: How a needed job has to end.
_NEEDED = {"ok": "with success", "any": "however, but for a cancel", "always": "however"}


def state(name: str) -> Text:
    """Return a job's state in its colour."""
    return Text(name, style=STATE_STYLES.get(name, ""))


def artifacts(found: Iterable[models.ArtifactEntry], now: datetime) -> Table:
    """Return one line an artifact."""
    table = _table("ARTIFACT", "NAME", "SIZE", "CREATED")
    for one in found:
        created = ago(one.created_at, now) if one.created_at else ""
        table.add_row(one.artifact_id, Text(plain(one.name)), size(one.size), created)
    return table


def datasets(found: Iterable[models.Dataset], now: datetime) -> Table:
    """Return one line a dataset."""
    table = _table("DATASET", "VERSIONS", "SIZE", "OWNER", "SHARED", "CHANGED", "DESCRIPTION")
    for one in found:
        changed = ago(one.created_at, now) if one.created_at else ""
        shared = "yes" if one.visibility == "shared" else "no"
        words = plain(one.description).partition("\n")[0]
        table.add_row(
            Text(f"{one.name}@{one.version}"), str(one.version_count), size(one.size), Text(plain(one.owner)), shared,
            changed, Text(words if len(words) <= 60 else f"{words[:59]}…"),
        )  # fmt: skip
    return table


def dataset(one: models.Dataset, now: datetime) -> Group:
    """Return a dataset and its versions."""
    facts = Table.grid(padding=(0, 2))
    for label, value in (
        ("dataset", f"{one.name}@{one.version}"),
        ("owner", f"{one.owner} ({one.visibility})"),
        ("labels", ", ".join(one.labels)),
        ("description", one.description),
        ("artifact", one.artifact_id),
        ("sha256", one.sha256),
    ):
        if value:
            facts.add_row(label, Text(plain(value)))
    table = _table("VERSION", "SIZE", "FILE", "CREATED", "SHA256")
    for version in one.versions:
        created = ago(version.created_at, now) if version.created_at else ""
        table.add_row(str(version.version), size(version.size), Text(plain(version.file)), created, version.sha256)
    return Group(facts, Text(), table)


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
    parts: list[RenderableType] = [facts, "", _timeline(found, now)]
    if found.attempts:
        parts += ["", _attempts(found)]
    if found.members:
        parts += ["", _members(found)]
    return Group(*parts)


def _reason(reason: models.Pending) -> str:
    return f"{reason.message} ({plural(reason.nodes, 'node')})" if reason.nodes else reason.message


def _timeline(job: models.Job, now: datetime) -> Table:
    table = _table("AFTER", "FOR", "WHAT")
    for step in timeline(job, now):
        table.add_row(duration(step.after_s), step.lasted, Text(plain(step.what)))
    return table


def _facts(job: models.Job, now: datetime) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = [("job", job.job_id), ("name", job.name), ("state", state(job.state))]
    if job.error:
        facts.append(("why", why(job.error)))
    facts += [("needs", f"{need.job} ({_NEEDED.get(need.on, need.on)})") for need in job.needs]
    if job.not_before and job.not_before > now and not job.is_terminal:
        facts.append(("next try", f"in {duration((job.not_before - now).total_seconds())} at the earliest"))
    facts += [("waits for", _reason(reason)) for reason in job.pending]
    if job.progress:
        facts.append(("progress", f"{job.progress.fraction:.0%} {job.progress.message}".strip()))
    if job.items:
        left = job.items.total - job.items.succeeded - job.items.failed
        facts.append(("items", f"{job.items.succeeded} succeeded, {job.items.failed} failed, {left} left"))
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
            Text(plain(why(attempt.error))),
        )
    return table


def _members(job: models.Job) -> Table:
    table = _table("MEMBER", "JOB", "NODE", "STATE", "EXIT", "WHY")
    for member in job.members:
        table.add_row(
            f"{member.role}-{member.index}",
            member.job_id,
            Text(plain(member.node)),
            state(member.state),
            "" if member.exit_code is None else str(member.exit_code),
            Text(plain(why(member.error))),
        )
    return table


def nodes(found: Iterable[models.Node], now: datetime) -> Table:
    """Return one line a machine."""
    table = _table(
        "NODE", "ID", "CONDITION", "DUTY", "CPUS", "MEMORY", "GPUS", "BUSY", "RUNNING", "TAGS", "SEEN", "WHY"
    )
    for node in found:
        table.add_row(
            Text(plain(node.name)),
            node.id,
            _condition(node),
            Text(node.duty, "" if node.duty == "active" else "yellow"),
            f"{node.capacity.get('cpus', 0):g}",
            size(node.capacity.get("memory", 0)),
            _gpus(node.capacity.get("gpus") or []),
            f"{node.usage.get('cpu_percent', 0):.0f} %",
            str(node.running),
            Text(plain(", ".join(node.tags))),
            ago(node.seen_at, now),
            Text(plain(_why_not(node))),
        )
    return table


def clusters(found: Iterable[models.Cluster]) -> Table:
    """Return one line a cluster."""
    table = _table("CLUSTER", "NODES", "ONLINE", "CPUS", "MEMORY", "GPUS", "RUNNING")
    for one in found:
        table.add_row(
            Text(plain(one.name)), str(len(one.nodes)), str(one.online), f"{one.cpus:g}", size(one.memory),
            str(one.gpus), str(one.running),
        )  # fmt: skip
    return table


def node(found: models.Node, now: datetime) -> RenderableType:
    """Return all that is worth knowing about a machine."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _node_facts(found, now):
        facts.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(plain(value)))
    parts: list[RenderableType] = [facts]
    if found.attempts:
        runs = _table("JOB", "ATTEMPT", "STATE")
        for held in found.attempts:
            runs.add_row(Text(plain(str(held.get("job_id")))), str(held.get("attempt")), state(str(held.get("state"))))
        parts += ["", runs]
    if found.history:
        lines = _table("WHEN", "WHAT", "BY", "WHY")
        for line in found.history:
            lines.add_row(ago(line.at, now), *(Text(plain(text)) for text in (line.what, line.by, line.reason)))
        parts += ["", lines]
    return Group(*parts)


def _node_facts(node: models.Node, now: datetime) -> list[tuple[str, str | Text]]:
    capacity, usage, extra = node.capacity, node.usage, node.model_extra or {}
    facts: list[tuple[str, str | Text]] = [
        ("node", node.name),
        ("id", node.id),
        ("cluster", node.cluster),
        ("tags", ", ".join(node.tags)),
        ("condition", _condition(node)),
        ("since", ago(node.since, now)),
        ("duty", node.duty),
        ("why", _why_not(node)),
        ("seen", ago(node.seen_at, now)),
        ("cpus", f"{capacity.get('cpus', 0):g}, {usage.get('cpu_percent', 0):.0f} % busy"),
        ("memory", f"{size(capacity.get('memory', 0))}, {size(usage.get('memory_available', 0))} free"),
        ("disk", f"{size(capacity.get('disk', 0))}, {size(usage.get('disk_free', 0))} free"),
        ("gpus", _gpus(capacity.get("gpus") or [])),
        ("runs", plural(node.running, "attempt")),
        ("keeps", _inputs(node.inputs or ())),
        ("brings", ", ".join(node.prefetches or ())),
        ("engine", str(extra.get("engine", ""))),
        ("agent", str(extra.get("agent_version", ""))),
    ]
    if node.deadline and node.duty == "draining":
        left = (node.deadline - now).total_seconds()
        facts.append(("deadline", f"in {duration(left)}" if left > 0 else "now"))
    return [(name, value) for name, value in facts if value]


def _inputs(kept: Sequence[Mapping[str, Any]]) -> str:
    if not kept:
        return ""
    return f"{plural(len(kept), 'input')}, {size(sum(int(one.get('bytes', 0)) for one in kept))}"


def _condition(node: models.Node) -> Text:
    name = node.condition or ("online" if node.online else "offline")
    return Text(name, {"online": "green", "suspect": "yellow", "left": "dim"}.get(name, "red"))


def _why_not(node: models.Node) -> str:
    return "; ".join(text for text in (node.reason, node.refused, node.problem) if text)


def explanation(found: models.Explanation, *, planned: bool) -> RenderableType:
    """Return why a job waits or is where it is; *planned*: of one that is not handed in."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _explained(found, planned=planned):
        facts.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(plain(value)))
    return Group(Text(plain(found.text)), "", facts) if found.text else facts


def _explained(found: models.Explanation, *, planned: bool) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = (
        [("would start", _verdict(found))] if planned else [("state", state(found.state))]
    )
    facts.append(("node", found.node or ""))
    facts += [("score", ", ".join(f"{name} {value:.3g}" for name, value in sorted(found.score.items())))]
    facts += [("waits for", _reason(one)) for one in found.reasons]
    facts += [("closest", f"{one.name or one.node}: {_lacks(one)}") for one in found.closest]
    if found.ahead is not None:
        facts.append(("queue", f"{plural(found.ahead, 'job')} before it, of {found.queue_length}"))
    if found.suggestion:
        changes = ", ".join(f"{field} = {value}" for field, value in found.suggestion.set.items())
        facts.append(("try", f"{found.suggestion.message} ({changes})" if changes else found.suggestion.message))
    return [(name, value) for name, value in facts if value]


def _verdict(found: models.Explanation) -> Text:
    if found.would_start:
        return Text("now", "green")
    return Text("never, on any machine that is there", "red") if found.never else Text("later", "yellow")


def _lacks(fit: models.Fit) -> str:
    """Return what a machine lacks: its own words, else by how much."""
    return fit.message or ", ".join(f"{lack.code}: wants {lack.wanted:g}, free {lack.free:g}" for lack in fit.lacks)


def users(found: Iterable[models.User]) -> Table:
    """Return one line a user."""
    table = _table("USER", "ROLE", "EMAIL", "")
    for user in found:
        table.add_row(
            Text(plain(user.name)), user.role, Text(plain(user.email or "")), "locked" if user.disabled else ""
        )
    return table


def quota(found: models.Quota) -> Table:
    """Return a user's limits, and what they hold."""
    facts = Table.grid(padding=(0, 2))
    limits = found.quota
    rows = [("user", plain(found.user))]
    if limits is None:
        rows.append(("limits", "none"))
    else:
        amounts = {"cpus": limits.cpus, "gpus": limits.gpus, "running": limits.running, "queued": limits.queued}
        rows += [(name, "no limit" if value is None else f"{value:g}") for name, value in amounts.items()]
        rows.insert(2, ("memory", "no limit" if limits.memory is None else size(limits.memory)))
        rows.append(("share", f"{limits.share:g}"))
    held = ", ".join(f"{count} {name}" for name, count in sorted(found.by_state.items()))
    for name, value in (*rows, ("jobs now", held or "none")):
        facts.add_row(Text(name, style="dim"), value)
    return facts


def dead_letters(found: Iterable[models.DeadLetter], now: datetime) -> Table:
    """Return one line a dead letter."""
    table = _table("ID", "READER", "SUBJECT", "WHEN", "REPLAYED", "WHY")
    for one in found:
        texts = (one.id, one.reader, one.subject, ago(one.at, now), ago(one.replayed_at, now), one.reason)
        table.add_row(*(Text(plain(text)) for text in texts))
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
