from client.wherry.cli.tables import count_words
from client.wherry.cli.words import cancelled_note


def test_a_cancel_says_what_it_did():
    assert cancelled_note("j1", "running") == "job j1 is told to stop; see `wherry show j1`"
    assert cancelled_note("j1", "queued") == "job j1 is told to stop; see `wherry show j1`"
    assert cancelled_note("j1", "succeeded") == "job j1 had ended already: succeeded"


def test_counts_read_as_a_sentence():
    jobs = {"total": 3, "by_state": {"succeeded": 2, "timed_out": 1}}
    assert count_words(jobs) == "3 total: 2 succeeded, 1 timed out"
    assert count_words({"total": 1, "online": 1}) == "1 total, 1 online"
    assert count_words({"total": 0, "by_state": {}}) == "0 total"
    assert count_words([]) == "none"
