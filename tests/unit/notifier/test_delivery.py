import pytest

from services.notifier.core.delivery import (
    HOUR,
    JITTER,
    RETRY_AFTER_MAX_S,
    SCHEDULES,
    Outcome,
    Verdict,
    decide,
    judge_mail,
    judge_webhook,
)

FAILED = Outcome(Verdict.FAILED, "no")


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, "delivered"), (202, "delivered"), (204, "delivered"), (299, "delivered"),
        (301, "failed"), (302, "failed"), (307, "failed"), (400, "failed"), (404, "failed"), (410, "hopeless"),
        (429, "failed"), (500, "failed"), (503, "failed"),
    ],
)  # fmt: skip
def test_only_2xx_delivers_a_webhook_and_only_410_ends_it(status: int, verdict: str):
    assert judge_webhook(status, None).verdict.value == verdict


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_throttling_receiver_says_when_to_come_back(status: int):
    assert judge_webhook(status, 90.0).retry_after_s == 90.0


def test_other_failures_do_not_set_the_time():
    assert judge_webhook(500, 90.0).retry_after_s is None


@pytest.mark.parametrize(("code", "verdict"), [(250, "delivered"), (421, "failed"), (451, "failed"), (550, "hopeless")])
def test_mail_codes_of_4xx_may_pass_and_5xx_are_final(code: int, verdict: str):
    assert judge_mail(code, "said so").verdict.value == verdict


def test_webhooks_are_tried_ten_times_over_three_days_and_then_given_up():
    pauses = [decide("webhook", FAILED, tries, 0.0).again_in_s for tries in range(1, 10)]
    assert pauses == list(SCHEDULES["webhook"])
    assert sum(SCHEDULES["webhook"]) == 75 * HOUR + 35 * 60 + 5
    last = decide("webhook", FAILED, 10, 0.0)
    assert (last.state, last.again_in_s) == ("given_up", None)
    assert "10 tries" in last.detail


def test_mail_is_tried_again_after_1_5_15_60_and_240_minutes():
    assert [decide("email", FAILED, tries, 0.0).again_in_s for tries in range(1, 7)] == [
        60,
        300,
        900,
        3600,
        14400,
        None,
    ]


def test_the_seed_makes_a_pause_at_most_a_fifth_longer():
    assert decide("webhook", FAILED, 2, 1.0).again_in_s == pytest.approx(300 * (1 + JITTER))


@pytest.mark.parametrize(("asked", "pause"), [(1.0, 5.0), (60.0, 60.0), (10.0**8, RETRY_AFTER_MAX_S)])
def test_a_receiver_may_ask_for_a_longer_pause_but_no_shorter_and_not_for_ever(asked: float, pause: float):
    assert decide("webhook", judge_webhook(429, asked), 1, 0.0).again_in_s == pause


def test_done_and_hopeless_deliveries_are_not_tried_again():
    assert decide("webhook", judge_webhook(200, None), 3, 0.5).state == "delivered"
    assert decide("webhook", judge_webhook(410, None), 1, 0.5).state == "given_up"
    assert decide("email", judge_mail(550, "no such user"), 1, 0.5).detail.endswith("550 no such user")
