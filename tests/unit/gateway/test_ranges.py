import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core import ranges
from shared.errors import WherryError


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None), ("", None), ("bytes=-", None), ("lines=1-2", None), ("bytes=1-2,4-5", None), ("bytes=5-2", None),
        ("bytes=0-0", (0, 1)), ("bytes=3-5", (3, 6)), ("bytes=3-", (3, 10)), ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)), ("bytes=3-400", (3, 10)), ("bytes= 3 - 5", (3, 6)),
    ],
)  # fmt: skip
def test_a_range_is_the_bytes_that_rfc_9110_says(header: str | None, expected: tuple[int, int] | None) -> None:
    span = ranges.span(header, 10)
    assert (None if span is None else (span.start, span.end)) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_a_range_behind_the_end_is_refused(header: str, size: int) -> None:
    with pytest.raises(WherryError) as caught:
        ranges.span(header, size)
    assert caught.value.code == "range_not_satisfiable"


def test_a_span_knows_its_header() -> None:
    span = ranges.span("bytes=3-5", 10)
    assert span is not None
    assert (span.length, span.content_range, span.is_whole) == (3, "bytes 3-5/10", False)


@given(st.text(max_size=20), st.integers(0, 100))
def test_no_header_breaks_it(header: str, size: int) -> None:
    try:
        span = ranges.span(header, size)
    except WherryError:
        return
    assert span is None or 0 <= span.start < span.end <= size


def test_a_condition_names_tags_weak_or_strong() -> None:
    assert ranges.matches('"a", W/"b"', '"b"')
    assert ranges.matches("*", '"b"')
    assert not ranges.matches('"a"', '"b"')
    assert not ranges.matches(None, '"b"')


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a/b/model.bin", 'attachment; filename="model.bin"'),
        ('we"ird;.txt', "attachment; filename=\"we_ird_.txt\"; filename*=UTF-8''we%22ird%3B.txt"),
        (
            "naïve 日本",
            "attachment; filename=\"na_ve __\"; filename*=UTF-8''na%C3%AFve%20%E6%97%A5%E6%9C%AC",
        ),
        ("", 'attachment; filename="download"'),
        ("a\r\nSet-Cookie: x", "attachment; filename=\"a__Set-Cookie: x\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20x"),
    ],
)
def test_a_file_name_is_written_as_rfc_6266_says(name: str, header: str) -> None:
    assert ranges.attachment(name) == header


@given(st.text(max_size=40))
def test_no_name_leaves_its_header(name: str) -> None:
    header = ranges.attachment(name)
    assert header.isascii()
    assert header.isprintable()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("plots/loss.png", "image/png"),
        ("notes", "application/octet-stream"),
        ("data:x/y\r\nSet-Cookie: a,b.txt", "text/plain"),
        ("data:€/x,y", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("a/", "application/octet-stream"),
    ],
)
def test_a_media_type_comes_from_the_end_of_a_name_and_from_nothing_else(path: str, expected: str) -> None:
    assert ranges.media_type(path) == expected
