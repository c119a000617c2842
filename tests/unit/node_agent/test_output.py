import itertools
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.core.output import CUT_MARK, OutputParser, Parsed, bar_in, metrics_in, progress_in
from shared.events import LOG_LINE_BYTES_MAX

AT = datetime(2026, 1, 1, tzinfo=UTC)


def lines(*chunks: bytes, parser: OutputParser | None = None) -> list[str]:
    parser = parser or OutputParser()
    parsed = [parser.feed("o", AT, chunk) for chunk in chunks] + [parser.finish(AT)]
    return [line.x for part in parsed for line in part.lines]


def test_lines_are_numbered_over_both_streams() -> None:
    parser = OutputParser()
    found = [*parser.feed("o", AT, b"one\ntw").lines, *parser.feed("e", AT, b"err\n").lines]
    found += [*parser.feed("o", AT, b"o\n").lines, *parser.finish(AT).lines]
    assert [(line.n, line.s, line.x) for line in found] == [(1, "o", "one"), (2, "e", "err"), (3, "o", "two")]


@given(st.binary(max_size=300).map(lambda raw: raw.replace(b"\r", b"?")), st.lists(st.integers(0, 300), max_size=5))
def test_however_the_bytes_are_cut_the_lines_are_the_same(raw: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    chunks = [raw[start:end] for start, end in itertools.pairwise(places)]
    assert lines(*chunks) == lines(raw)
    assert lines(raw) == [part.decode("utf-8", "replace") for part in raw.removesuffix(b"\n").split(b"\n") if raw]


@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"50%|#", b"\r\n", b"::metric x=1"]), max_size=12), st.integers(0, 12)
)
def test_a_parser_that_was_saved_goes_on_where_it_stopped(pieces: list[bytes], at: int) -> None:
    whole, first = OutputParser(), OutputParser()
    expected = [whole.feed("o", AT, piece) for piece in pieces] + [whole.finish(AT)]
    found = [first.feed("o", AT, piece) for piece in pieces[:at]]
    second = OutputParser.restored(first.saved())
    found += [second.feed("o", AT, piece) for piece in pieces[at:]] + [second.finish(AT)]
    assert found == expected


def test_a_line_that_is_too_long_is_cut_and_marked() -> None:
    (line,) = lines(b"x" * 100_000, b"y" * 10 + b"\n")
    assert line.endswith(CUT_MARK)
    assert len(line.encode()) == LOG_LINE_BYTES_MAX
    (binary,) = lines(b"\xff" * 100_000 + b"\n")
    assert len(binary.encode()) <= LOG_LINE_BYTES_MAX
    assert lines(b"x" * 16_000 + b"\n") == ["x" * 16_000]


def test_a_bar_that_redraws_itself_is_one_line_and_many_progresses() -> None:
    parser = OutputParser()
    drawn = [parser.feed("e", AT, f"\r {done}%|##   | {done}/100".encode()) for done in (10, 20)]
    # A bar's drawing is complete when the next begins.
    assert [p.progress.fraction if p.progress else None for p in drawn] == [None, 0.1]
    end = parser.feed("e", AT, b"\r100%|#####| 100/100\n")
    assert end.progress
    assert end.progress.fraction == 1.0
    assert [line.x for line in end.lines] == ["100%|#####| 100/100"]


def test_a_bar_that_returns_at_its_end_is_read_at_once() -> None:
    parser = OutputParser()
    drawn = [parser.feed("o", AT, f"{done}/8 [===>....]\r".encode()) for done in (2, 4)]
    assert [p.progress.fraction if p.progress else None for p in drawn] == [0.25, 0.5]
    assert lines(b"abc\r", b"\ndef\r\n") == ["abc", "def"]


def test_carriage_return_and_line_feed_count_a_metric_once() -> None:
    parser = OutputParser()
    assert len(parser.feed("o", AT, b"::metric loss=1\r\n").metrics) == 1


@given(
    st.lists(
        st.sampled_from([b"a", b"\n", b"\r", b"long line " * 5, b"\n::metric x=1\n", b"\n::progress 0.5\n"]),
        max_size=40,
    ),
    st.integers(0, 100),
)
def test_what_is_skimmed_has_the_same_numbers_and_signals(pieces: list[bytes], last: int) -> None:
    chunk = b"".join(pieces)
    whole, skimmed = OutputParser(), OutputParser()
    expected, found = whole.feed("o", AT, chunk), skimmed.skim("o", AT, chunk, last)
    assert found.metrics == expected.metrics
    assert found.progress == expected.progress
    assert skimmed.saved() == whole.saved()
    assert set(found.lines) <= set(expected.lines)
    in_last = chunk[max(0, len(chunk) - last) :].count(b"\n")
    assert found.lines[len(found.lines) - in_last :] == expected.lines[len(expected.lines) - in_last :]


def test_of_many_drawings_the_last_that_is_a_bar_counts() -> None:
    parser = OutputParser()
    parsed = parser.feed("e", AT, b"".join(b"\r%3d%%|##   | %d/100" % (n, n) for n in range(50)) + b"\r          \r")
    assert parsed.progress
    assert parsed.progress.fraction == pytest.approx(0.49)


@pytest.mark.parametrize(
    ("text", "fraction", "message"),
    [
        ("::progress 0.42::epoch 3 of 7", 0.42, "epoch 3 of 7"),
        ("::progress 1", 1.0, ""),
        ("::progress 42%::almost", 0.42, "almost"),
        ("::progress .5 :: a::b", 0.5, "a::b"),
        ("::progress 7", 1.0, ""),
        ("::progress 1e-2", 0.01, ""),
    ],
)
def test_progress_lines(text: str, fraction: float, message: str) -> None:
    progress = progress_in(text, AT)
    assert progress
    assert (progress.fraction, progress.message) == (pytest.approx(fraction), message)


@pytest.mark.parametrize(
    "text", ["::progress", "::progress x", "::progress -1", "::progress nan", "progress 0.5", "::progress 1.2.3"]
)
def test_what_is_no_progress_line(text: str) -> None:
    assert progress_in(text, AT) is None


def test_metric_lines() -> None:
    found = metrics_in("::metric accuracy=0.93 val/loss=1e-3 step=3 bad=x inf=inf =1 7=7 system.cpu=9", AT)
    assert [(point.name, point.value, point.step) for point in found] == [("accuracy", 0.93, 3), ("val/loss", 0.001, 3)]
    assert [point.step for point in metrics_in("::metric a=1", AT)] == [None]
    assert metrics_in("::metrics a=1", AT) == []


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("  42%|####      | 42/100 [00:01<00:01, 41.9it/s]", 0.42),
        ("train: 100%|██████████| 5/5", 1.0),
        ("45%|████", 0.45),
        ("  0%|          | 0/7 [00:00<?, ?it/s]", 0.0),
        ("  7%|7         | 71.0k/1.00M [00:01<00:13, 67.2kB/s]", 0.07),
        ("12/100 [==>...........................] - ETA: 3s\b\b\b\b", 0.12),
        ("12/48 [======>.......................] - ETA: 1s - loss: 0.3", 0.25),
        ("\x1b[1m 5/10\x1b[0m \x1b[32m━━━━━━━━━\x1b[0m\x1b[37m━━━━━\x1b[0m \x1b[1m0s\x1b[0m", 0.5),
        ("9/6 [====] over", 1.0),
    ],
)
def test_bars_of_tqdm_and_keras(text: str, fraction: float) -> None:
    progress = bar_in(text, AT)
    assert progress
    assert progress.fraction == pytest.approx(fraction)
    assert progress.message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "see /usr/bin", "1/2 cup of sugar", "CPU 50% busy", "0/0 [====]", "a|b 5 %|", "recall 45%| of all",
        "3/4 [ ] done", "| acc | 45%| 3/4 |", "2/7 [] tests", "100% of 12/100 done", "1/3 [INFO] step",
    ],
)  # fmt: skip
def test_what_is_no_bar(text: str) -> None:
    assert bar_in(text, AT) is None


def test_ordinary_output_says_nothing() -> None:
    assert OutputParser().feed("o", AT, b"") == Parsed()


RECORDED = Path(__file__).parent / "recorded"


def drawn(recorded: str, size: int) -> list[float]:
    """Return the progress that is seen when what a library has printed comes in pieces of *size* bytes."""
    raw, parser = (RECORDED / recorded).read_bytes(), OutputParser()
    pieces = [parser.feed("e", AT, raw[start : start + size]).progress for start in range(0, len(raw), size)]
    return [piece.fraction for piece in pieces if piece]


@pytest.mark.parametrize("size", [1, 100, 4096])
def test_bars_that_keras_has_drawn_for_three_epochs_are_the_progress_of_all(size: int) -> None:
    found = drawn("keras-3.15.1.txt", size)
    assert found == sorted(found)
    assert found[-1] == 1
    if size < 4096:  # in large pieces only the last of several drawings counts
        assert any(0.34 < fraction < 0.66 for fraction in found)


def test_of_bars_that_tqdm_has_drawn_one_below_another_the_upper_one_is_the_progress() -> None:
    found = [fraction for fraction, _ in itertools.groupby(drawn("tqdm-4.70.1.txt", 1))]
    assert found[:4] == [0, 0.5, 1, 0]  # the fourth is of another bar
    assert found[-1] == 1


def test_an_epoch_is_known_after_a_restart_and_past_a_flood() -> None:
    first = OutputParser()
    first.feed("o", AT, b"Epoch 3/4\n")
    second = OutputParser.restored(first.saved())
    progress = second.feed("o", AT, b"10/20 - 1s - 22ms/step - loss: 0.5\n").progress
    assert progress
    assert progress.fraction == 0.625
    second.skim("o", AT, b"x\n" + b"Epoch 4/4\n" + b"flood\n" * 100, 6)
    progress = second.feed("o", AT, b"10/20 - 1s - 22ms/step - loss: 0.5\n").progress
    assert progress
    assert progress.fraction == 0.875


def test_after_the_last_epoch_a_bar_is_that_of_an_evaluation() -> None:
    parser = OutputParser()
    parser.feed("o", AT, b"Epoch 2/2\n20/20 [====]\n")
    progress = parser.feed("o", AT, b"5/10 [==>..]\n").progress
    assert progress
    assert progress.fraction == 0.5


@pytest.mark.parametrize("line", ["Epoch 5/4", "Epoch 0/4", "Epoch 1/0", "Epoch one/4", "Epoch 2/4: loss 3"])
def test_what_names_no_epoch(line: str) -> None:
    parser = OutputParser()
    progress = parser.feed("o", AT, f"{line}\n1/2 [==>..]\n".encode()).progress
    assert progress
    assert progress.fraction == 0.5
