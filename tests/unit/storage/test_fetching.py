"""What answers from the web mean, what files are called, and that only checked addresses are dialled."""

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from services.storage.adapters.fetch import Web
from services.storage.core.fetching import (
    NAME_BYTES_MAX,
    FetchBroke,
    Head,
    Part,
    file_name,
    judge,
    media_type,
    strong_validator,
)
from shared.errors import WherryError

URL = "https://example.org/x"


def head(status: int, content_range: str | None = None) -> Head:
    return Head(status, "Words", None, content_range, None, "text/plain")


def test_all_bytes_and_the_rest_of_them_are_told_apart():
    assert judge(URL, head(200), 0) is Part.WHOLE
    assert judge(URL, head(200), 10) is Part.WHOLE
    assert judge(URL, head(206, "bytes 10-99/100"), 10) is Part.REST
    for status, said in ((206, "bytes 9-99/100"), (206, None), (206, "10-"), (416, None), (404, None)):
        with pytest.raises(FetchBroke):
            judge(URL, head(status, said), 10)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "input_missing"), (410, "input_missing"), (401, "input_missing"), (403, "input_missing"),
     (400, "stage_in_failed"), (405, "stage_in_failed"), (501, "stage_in_failed"), (204, "stage_in_failed"),
     (206, "stage_in_failed"), (304, "stage_in_failed")],
)  # fmt: skip
def test_what_will_not_change_ends_it_with_address_and_status(status: int, code: str):
    with pytest.raises(WherryError) as caught:
        judge(URL, head(status), 0)
    assert (caught.value.code, caught.value.retryable) == (code, False)
    assert URL in caught.value.message
    assert str(status) in caught.value.message


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(status: int):
    with pytest.raises(FetchBroke):
        judge(URL, head(status), 0)


def test_only_what_names_the_very_bytes_lets_a_download_go_on():
    assert strong_validator('"abc"', "Mon") == '"abc"'
    assert strong_validator('W/"abc"', "Mon") is None
    assert strong_validator(None, "Mon, 01 Jan 2026") == "Mon, 01 Jan 2026"
    assert strong_validator(None, None) is None
    assert strong_validator('"\udcff"', None) is None


def test_media_types_are_passed_on_without_anything_behind_them():
    assert media_type("text/csv; charset=utf-8") == "text/csv"
    for odd in (None, "", "text", "text/\r\nX: y", "ü/x"):
        assert media_type(odd) == "application/octet-stream"


@pytest.mark.parametrize(
    ("text", "name"),
    [("/data/train.csv", "train.csv"), ("a\\b.zip", "b.zip"), ("/", "x"), ("", "x"), ("..", "x"), ("/a/..", "x"),
     ("a\0b\n.txt", "ab.txt"), ("größe.csv", "größe.csv"), ('a<>:"|?*b', "ab"), ("name. ", "name"), (".", "x")],
)  # fmt: skip
def test_names_of_files_are_plain(text: str, name: str):
    assert file_name(text, "x") == name


@given(st.text(max_size=400))
def test_every_name_is_one_that_any_file_system_takes(text: str):
    name = file_name(text, "x")
    assert name not in ("", ".", "..")
    assert not set(name) & set('/\\\0\n\r<>:"|?*')
    assert len(name.encode()) <= NAME_BYTES_MAX


class Names(AbstractResolver):
    """A name server that answers otherwise each time."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET):
        self.asked += 1
        address = self.answers[min(self.asked, len(self.answers)) - 1]
        return [ResolveResult(hostname=host, host=address, port=port, family=int(family), proto=0, flags=0)]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_name_that_leads_to_a_private_address_is_not_dialled(address: str):
    names = Names(address)
    async with Web((), 60, names) as web:
        with pytest.raises(WherryError) as caught:
            async with web.get("https://rebind.example.org/x"):
                pass
    assert caught.value.code == "input_missing"
    assert "not a public address" in caught.value.message
    assert names.asked == 1


async def test_a_name_is_looked_up_once_for_each_call_and_what_was_checked_is_what_is_dialled(
    monkeypatch: pytest.MonkeyPatch,
):
    dialled: list[str] = []

    async def dial(*_args: object, addr_infos: list[tuple[object, ...]], **_: object) -> None:
        dialled.extend(str(info[4][0]) for info in addr_infos)  # pyright: ignore[reportIndexIssue]
        raise ConnectionRefusedError

    monkeypatch.setattr("aiohttp.TCPConnector._wrap_create_connection", dial)
    names = Names("203.0.114.7", "127.0.0.1")  # public when it is checked, private afterwards
    async with Web((), 60, names) as web:
        with pytest.raises(FetchBroke):
            async with web.get("https://rebind.example.org/x"):
                pass
        assert (dialled, names.asked) == (["203.0.114.7"], 1)
        with pytest.raises(WherryError):  # the next call is checked anew: nothing is remembered
            async with web.get("https://rebind.example.org/x"):
                pass
    assert dialled == ["203.0.114.7"]


@pytest.mark.parametrize(
    "url", ["http://example.org/", "https://u@example.org/", "ftp://example.org/", "https:///x", "x"]
)
async def test_addresses_that_may_not_be_called_are_not(url: str):
    names = Names("203.0.114.7")
    async with Web((), 60, names) as web:
        with pytest.raises(WherryError) as caught:
            async with web.get(url):
                pass
    assert caught.value.code == "input_missing"
    assert names.asked == 0


ODD = [
    b"", b"\r\n\r\n", b"HTTP/9.9 x\r\n\r\n", b"\x00\xff" * 100, b"SSH-2.0-OpenSSH_9\r\n",
    b"HTTP/1.1 404 \xff\xfe\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 302 F\r\nLocation: \xff\xfe\r\n\r\n",
    b"HTTP/1.1 302 F\r\nLocation: http://[\r\n\r\n", b"HTTP/1.1 302 F\r\n\r\n", b"HTTP/1.1 302 F\r\nLocation: \r\n\r\n",
    b"HTTP/1.1 302 F\r\nLocation: https://x:99999/\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    b"HTTP/1.1 206 P\r\nContent-Range: bytes " + b"9" * 5000 + b"-9/9\r\nContent-Length: 0\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("said", ODD)
async def test_whatever_a_server_says_is_one_of_the_two_errors(said: bytes):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, Web({place}, 5) as web:
        with pytest.raises((FetchBroke, WherryError)):
            async with web.get(f"http://{place}/x", 5, '"tag"') as got:
                judge(URL, got.head, 5)
                async for _ in got.pieces:
                    pass
