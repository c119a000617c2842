"""What notifications say."""

import json
import re
from datetime import datetime
from typing import Any

from shared.events import DeliveryRequested, JobSummary

SUBJECT_CHARS_MAX = 120
ERROR_CHARS_MAX = 2000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_WORDS = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled", "timed_out": "timed out"}


def one_line(text: str, longest: int) -> str:
    """Return *text* without control characters, cut to *longest* characters."""
    line = _CONTROL.sub(" ", text).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def subject(request: DeliveryRequested) -> str:
    """Return a mail's subject: one line, whatever the job is called."""
    if request.notice:
        return f"[wherry] {one_line(request.notice.title, SUBJECT_CHARS_MAX)}"
    ended = _WORDS.get(request.event, request.event)
    name = request.job.name if request.job else request.job_id
    return f"[wherry] {one_line(name, SUBJECT_CHARS_MAX)} {ended}"


def mail(request: DeliveryRequested, public_url: str) -> str:
    """Return a mail's text: what ended how, why, what it left, and how to get that."""
    if request.notice:
        where = f"\n\nDashboard:   {public_url.rstrip('/')}/dashboard" if public_url else ""
        return f"{request.notice.text}{where}\n"
    job = request.job
    ended = _WORDS.get(request.event, request.event)
    name = one_line(job.name, SUBJECT_CHARS_MAX) if job else request.job_id
    parts = [f"The job {name!r} ({request.job_id}) {ended}."]
    if job:
        parts += _details(job)
    parts.append(f"Show it:     wherry show {request.job_id}\nIts log:     wherry logs {request.job_id}")
    if job and job.files:
        parts[-1] += f"\nIts outputs: wherry get {request.job_id}"
        if public_url:
            parts[-1] += f"\n             {job_url(public_url, request.job_id)}/outputs (a zip)"
    if public_url:
        parts.append(f"Dashboard:   {public_url.rstrip('/')}/dashboard")
    return "\n\n".join(parts) + "\n"


def _details(job: JobSummary) -> list[str]:
    parts: list[str] = []
    if job.error:
        parts.append(f"Why: {job.error.message[:ERROR_CHARS_MAX]} ({job.error.reason.value})")
    took = _span(job.running_at, job.ended_at)
    facts = [
        f"Handed in:   {job.created_at:%Y-%m-%d %H:%M:%S} UTC",
        f"Ended:       {job.ended_at:%Y-%m-%d %H:%M:%S} UTC" if job.ended_at else "",
        f"Ran for:     {took}" if took else "",
        f"Attempts:    {job.attempts}" if job.attempts > 1 else "",
        f"Outputs:     {job.files} {'file' if job.files == 1 else 'files'}, {_size(job.bytes)}" if job.files else "",
    ]
    parts.append("\n".join(fact for fact in facts if fact))
    return parts


def payload(request: DeliveryRequested, public_url: str) -> bytes:
    """Return a webhook's body: a CloudEvents 1.0 event in JSON, the same bytes at every try, below 20 KB."""
    if request.notice:
        said = {"title": request.notice.title, "text": request.notice.text[:ERROR_CHARS_MAX], "id": request.job_id}
        return _event(request, f"io.wherry.{request.notice.topic}.v1", request.at, said)
    job = request.job
    data = {
        "job_id": request.job_id,
        "name": job.name if job else None,
        "state": job.state if job else request.event,
        "error": _error(job),
        "outputs": {"files": job.files, "bytes": job.bytes} if job else None,
        "attempts": job.attempts if job else None,
        "created_at": _time(job.created_at) if job else None,
        "running_at": _time(job.running_at) if job else None,
        "ended_at": _time(job.ended_at) if job else None,
        "url": job_url(public_url, request.job_id) if public_url else None,
    }
    return _event(request, f"io.wherry.job.{request.event}.v1", (job.ended_at if job else None) or request.at, data)


def _event(request: DeliveryRequested, kind: str, at: datetime, data: dict[str, Any]) -> bytes:
    event = {
        "specversion": "1.0",
        "id": request.event_id,
        "source": "/wherry/notifier",
        "type": kind,
        "time": _time(at),
        "subject": request.job_id,
        "datacontenttype": "application/json",
        "data": data,
    }
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _error(job: JobSummary | None) -> dict[str, str] | None:
    if job is None or job.error is None:
        return None
    return {"reason": job.error.reason.value, "message": job.error.message[:ERROR_CHARS_MAX]}


def job_url(public_url: str, job_id: str) -> str:
    """Return where a job is to be found over REST."""
    return f"{public_url.rstrip('/')}/v1/jobs/{job_id}"


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment else None


def _span(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return ""
    minutes, seconds = divmod(max(0, round((end - start).total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
