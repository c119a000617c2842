from shared import streams
from shared.channels import CHANNELS, LOGS


def covers(pattern: str, subject: str) -> bool:
    wanted, found = pattern.split("."), subject.split(".")
    return wanted[-1] == ">" and found[: len(wanted) - 1] == wanted[:-1] and len(found) >= len(wanted)


def test_every_kept_channel_is_kept_by_its_stream_and_no_other():
    for channel in CHANNELS:
        subject = channel.wildcard()
        keepers = [one.name for one in streams.STREAMS if any(covers(pattern, subject) for pattern in one.subjects)]
        assert keepers == ([channel.stream] if channel.stream else []), channel.name


def test_every_consumer_is_of_a_stream_that_keeps_what_it_filters():
    by_name = {one.name: one for one in streams.STREAMS}
    for durable in streams.DURABLES:
        for wanted in durable.filters:
            assert any(wanted == own or covers(own, wanted) for own in by_name[durable.stream].subjects)


def test_what_must_be_on_disk_is_never_written_late():
    late = [one.name for one in streams.STREAMS if one.config()["persist_mode"] == "async"]
    assert late == ["WHERRY_LOGS"]
    assert all(one.config(3)["persist_mode"] != "async" for one in streams.STREAMS)


def test_every_durable_stream_takes_atomic_batches():
    assert all(one.config()["allow_atomic"] is one.durable for one in streams.STREAMS)


def test_replicas_are_a_parameter():
    assert {one.config(3)["num_replicas"] for one in streams.STREAMS} == {3}
    assert {one.config(3)["num_replicas"] for one in streams.DURABLES} == {3}


def test_only_what_is_wanted_is_compared():
    assert streams.differences({"a": 1, "b": [], "c": {"x": 1}}, {"a": 1, "c": {"x": 1, "y": 2}, "more": 1}) == {}
    assert streams.differences({"a": 1}, {"a": 2}) == {"a": (1, 2)}
    assert streams.differences({"deny": True}, {}) == {"deny": (True, None)}


def test_only_live_output_may_be_acknowledged_before_it_is_on_disk() -> None:
    for replicas in (1, 3):
        hasty = {one.name for one in streams.STREAMS if one.config(replicas).get("persist_mode") == "async"}
        assert hasty <= {LOGS}
    assert all(one.config(1)["storage"] == "file" for one in streams.STREAMS)
