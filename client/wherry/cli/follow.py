"""Watching a job to its end: why it waits, how far it is, what it prints, and what became of it."""

import re
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from client.wherry import models
from client.wherry.cli.console import Output, as_json
from client.wherry.cli.words import between, plain, plural, size
from client.wherry.client import Client
from client.wherry.protocol import LogChoice

_BEFORE_RUNNING = frozenset({"queued", "placed", "starting"})
_FIRST_LOOK_S, _SLOWEST_LOOK_S = 0.2, 2.0
#: Without a terminal, progress is told in steps of this size.
_TOLD_STEP = 0.1
#: Lines by which a program reports to wherry: they arrive once more as progress and metrics.
_REPORT = re.compile(r"::(progress [\d.]+(::|$)|metric \S+=\S+)")


class Watch:
    """Shows a job while it goes on: a bar below its output on a terminal, else lines."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live = output.err.is_terminal and not output.json
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=output.err,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID = self._bar.add_task("", total=None)
        self._said = ""
        self._told = -_TOLD_STEP
        self._metrics: dict[str, float | None] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def state(self, job: models.Job) -> None:
        """Say where the job is, and why it waits."""
        reasons = "; ".join(reason.message for reason in job.pending)
        text = plain(f"{job.state}: {reasons}" if reasons else job.state)
        if self._live:
            self._bar.update(self._task, description=text)
        elif text != self._said:
            self._output.note(text)
        self._said = text

    def show(self, item: models.JobOutput) -> None:
        """Show something that the job printed."""
        if self._output.json:
            self._output.document({"event": _name(item), **as_json(item)})
            return
        match item:
            case models.LogLine():
                # On a terminal the bar shows them; a pipe gets the log as it is.
                if not (self._output.out.is_terminal and _REPORT.match(item.text)):
                    self._output.line(_named(item.member, item.text), error=item.stream == "stderr")
            case models.Progress():
                self._progress(item)
            case models.Metric():
                self._metrics[item.name] = item.value
            case models.Gap():
                self._output.note(_named(item.member, _missing(item)))
            case models.End():
                pass

    def _progress(self, item: models.Progress) -> None:
        text = plain(item.message) or "running"
        if self._live:
            measured = "  ".join(f"{name} {value:.4g}" for name, value in self._metrics.items() if value is not None)
            text = f"{text}  {measured}" if measured and not item.message else text
            self._bar.update(self._task, description=text, total=1.0, completed=item.fraction)
        elif item.fraction >= self._told + _TOLD_STEP or (item.fraction >= 1 > self._told):
            self._told = item.fraction
            self._output.note(f"{item.fraction:4.0%} {text}")

    def metrics(self) -> str:
        """Return the last value of everything that the job measured."""
        return ", ".join(f"{name} {value:.4g}" for name, value in self._metrics.items() if value is not None)


def follow(client: Client, job_id: str, output: Output, choice: LogChoice) -> models.Job:
    """Show a job until it has ended and return it."""
    with Watch(output) as watch:
        job = _until_it_runs(client, job_id, watch)
        shown = client.follow(
            job_id, stream=choice.stream, tail=choice.tail, since=choice.since, attempt=choice.attempt
        )
        for item in shown:
            watch.show(item)
        if not job.is_terminal:
            job = client.wait(job_id)
    if output.json:
        output.document({"event": "result", "job": as_json(job)})
    else:
        _result(job, watch.metrics(), output)
    return job


def _until_it_runs(client: Client, job_id: str, watch: Watch) -> models.Job:
    pause = _FIRST_LOOK_S
    while True:
        job = client.job(job_id)
        watch.state(job)
        if job.state not in _BEFORE_RUNNING:
            return job
        time.sleep(pause)
        pause = min(pause * 1.2, _SLOWEST_LOOK_S)


def _result(job: models.Job, metrics: str, output: Output) -> None:
    took = between(job.created_at, job.ended_at)
    output.note(f"job {job.job_id} {job.state}" + (f" after {took}" if took else ""))
    if job.error:
        output.note(f"  {plain(job.error.message)} ({job.error.reason})")
    for remark in job.remarks:
        output.note(f"  {plain(remark)}")
    if metrics:
        output.note(f"  {plain(metrics)}")
    if job.outputs and job.outputs.files:
        output.note(f"  {plural(job.outputs.files, 'file')}, {size(job.outputs.bytes)}: wherry get {job.job_id}")
    else:
        output.note(f"  its log: wherry logs {job.job_id}")


def _named(member: str | None, text: str) -> str:
    return text if member is None else f"{member} | {text}"


def _missing(gap: models.Gap) -> str:
    if not gap.count:
        return "[some lines are missing here; the log among the outputs has them]"
    numbers = f"{gap.first}" if gap.count == 1 else f"{gap.first} to {gap.last}"
    return f"[{plural(gap.count, 'line')} missing here, {numbers}; see the log among the outputs]"


def _name(item: models.JobOutput) -> str:
    return {"LogLine": "log"}.get(type(item).__name__, type(item).__name__.lower())
