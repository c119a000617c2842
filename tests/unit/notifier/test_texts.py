import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from services.notifier.adapters.email import EmailSender
from services.notifier.core.signing import sign
from services.notifier.core.texts import mail, payload, subject
from services.notifier.settings import NotifierSettings
from shared.clock import utc_now
from shared.events import DeliveryRequested, JobSummary
from shared.job import Failure
from shared.states import EndReason

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def request(name: str = "train", **facts: Any) -> DeliveryRequested:
    summary = JobSummary(
        name=name,
        state="failed",
        error=Failure(reason=EndReason.OOM, message="It needed more than 1 GiB."),
        files=2,
        bytes=3 * 1024 * 1024,
        attempts=2,
        created_at=NOW - timedelta(minutes=3),
        running_at=NOW - timedelta(seconds=75),
        ended_at=NOW,
    )
    return DeliveryRequested(
        delivery_id="d1",
        job_id="j1",
        owner_id="u1",
        event_id="e1",
        event="failed",
        kind="email",
        target="ann@example.org",
        at=NOW,
        job=summary.model_copy(update=facts),
    )


def test_a_signature_verifies_with_the_standard_library_of_receivers():
    body = payload(request(), "https://wherry.example.org")
    stamp = int(utc_now().timestamp())  # the library that verifies compares with the clock
    headers = {
        "webhook-id": "d1",
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(SECRET, "d1", stamp, body),
    }
    assert Webhook(SECRET).verify(body, headers)["data"]["job_id"] == "j1"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


def test_a_secret_that_is_no_base64_is_refused():
    with pytest.raises(ValueError, match="base64"):
        sign("whsec_!!", "d1", 1, b"")


def test_the_payload_is_a_cloudevent_with_all_that_a_program_needs():
    event = json.loads(payload(request(), "https://wherry.example.org/"))
    assert event["specversion"] == "1.0"
    assert (event["type"], event["subject"], event["id"]) == ("io.wherry.job.failed.v1", "j1", "e1")
    assert event["data"]["error"] == {"reason": "oom", "message": "It needed more than 1 GiB."}
    assert event["data"]["outputs"] == {"files": 2, "bytes": 3 * 1024 * 1024}
    assert event["data"]["url"] == "https://wherry.example.org/v1/jobs/j1"


def test_the_payload_stays_below_20_kilobytes_whatever_the_error_says():
    error = Failure(reason=EndReason.EXIT_CODE, message="\U0001f680" * 100_000)
    assert len(payload(request(error=error), "https://x.example.org")) < 20_000


def test_a_mail_says_what_ended_how_why_and_how_to_get_what_it_left():
    text = mail(request(), "https://wherry.example.org")
    for part in (
        "'train' (j1) failed.", "needed more than 1 GiB", "(oom)", "1 min 15 s", "2 files, 3.0 MiB", "wherry get j1",
        "https://wherry.example.org/v1/jobs/j1/outputs",
    ):  # fmt: skip
        assert part in text


def test_a_jobs_name_can_neither_add_headers_nor_fill_the_screen():
    line = subject(request("x\r\nBcc: eve@example.org\x1b[2J\u2028y" + "z" * 500))
    assert line.isprintable()
    assert len(line) < 160
    message = EmailSender(NotifierSettings()).message(request("x\r\nBcc: eve@example.org"))
    assert message["Bcc"] is None
    assert message["To"] == "ann@example.org"


def test_a_recipient_with_a_line_break_is_no_mail():
    evil = request().model_copy(update={"target": "ann@example.org\r\nBcc: eve@example.org"})
    with pytest.raises(ValueError, match="linefeed"):
        EmailSender(NotifierSettings()).message(evil)


async def test_without_a_mail_server_mail_is_given_up_with_the_reason():
    outcome = await EmailSender(NotifierSettings(smtp_host=None)).send(request())
    assert outcome.verdict.value == "hopeless"
    assert "WHERRY_SMTP_HOST" in outcome.detail
