import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.adapters.form import fields_of, parts
from shared.errors import WherryError

TYPE = "multipart/form-data; boundary=XX"


def form(*fields: tuple[str, bytes]) -> bytes:
    out = b""
    for name, content in fields:
        out += b'--XX\r\nContent-Disposition: form-data; name="%s"; filename="f.zip"\r\n\r\n' % name.encode()
        out += content + b"\r\n"
    return out + b"--XX--\r\n"


async def pieces(body: bytes, size: int):
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def taken(body: bytes, size: int = 7) -> list[tuple[str, bytes]]:
    return [(part.name, await part.content(10_000)) async for part in parts(TYPE, pieces(body, size))]


@given(st.lists(st.tuples(st.sampled_from(["spec", "source"]), st.binary(max_size=80)), max_size=4), st.integers(1, 50))
async def test_parts_come_as_they_were_sent_however_the_bytes_are_cut(
    fields: list[tuple[str, bytes]], size: int
) -> None:
    fields = [(name, content) for name, content in fields if b"--XX" not in content]
    assert await taken(form(*fields), size) == fields


async def test_a_part_that_nobody_reads_is_passed_over() -> None:
    body = form(("junk", b"x" * 100), ("spec", b"{}"))
    seen = [part.name async for part in parts(TYPE, pieces(body, 9))]
    assert seen == ["junk", "spec"]


@pytest.mark.parametrize("cut", [5, 40, 90, 120])
async def test_a_form_that_is_cut_is_an_error_and_not_a_short_part(cut: int) -> None:
    body = form(("source", b"y" * 60))
    with pytest.raises(WherryError) as caught:
        await taken(body[:cut])
    assert caught.value.code == "bad_form"


async def test_a_part_larger_than_allowed_is_refused() -> None:
    with pytest.raises(WherryError) as caught:
        async for part in parts(TYPE, pieces(form(("spec", b"z" * 50)), 9)):
            await part.content(10)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=" + "X" * 300, b""),
        (TYPE, b"nonsense"),
        (TYPE, b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--\r\n"),
        (TYPE, b"--XX\r\n" + b"A: b\r\n" * 100 + b"\r\nx\r\n--XX--\r\n"),
    ],
)
async def test_what_is_no_form_is_said(content_type: str, body: bytes) -> None:
    with pytest.raises(WherryError) as caught:
        async for part in parts(content_type, pieces(body, 11)):
            await part.content(100)
    assert caught.value.code == "bad_form"


@pytest.mark.parametrize(
    ("content_type", "body", "fields"),
    [
        (
            "application/x-www-form-urlencoded",
            b"user=anna&password=a+b%26%C3%A4",
            {"user": "anna", "password": "a b&\xe4"},
        ),
        ("Application/X-WWW-Form-Urlencoded; charset=utf-8", b"a=%zz&b=%ff&c&a=2", {"a": "2", "b": "\ufffd", "c": ""}),
        (TYPE, form(("user", b"anna"), ("password", b"a b&\xc3\xa4")), {"user": "anna", "password": "a b&\xe4"}),
        (TYPE.title().replace("Xx", "XX"), form(("a", b"")), {"a": ""}),
        ("application/json", b"{}", None),
    ],
)
async def test_the_fields_of_a_small_form_are_the_same_however_they_are_sent(
    content_type: str, body: bytes, fields: dict[str, str] | None
) -> None:
    assert await fields_of(content_type, body) == fields
