"""Odd forms, headers and program output for the other parsers that read what strangers send; each with its oracle."""

import asyncio
import base64
import json
import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime

from services.gateway.adapters.form import parts
from services.gateway.core import ranges, tus
from services.node_agent.core.output import OutputParser
from shared.errors import WherryError
from tests.fuzz.oracle import expect

# It tells of everything that is wrong with a form.
logging.getLogger("python_multipart").setLevel(logging.ERROR)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_DIGITS = [
    "0",
    "1",
    "5",
    "-1",
    "9" * 18,
    "9" * 19,
    "9" * 40,
    "9" * 5000,
    "",
    " ",
    "1e3",
    "\u0664",
    "\u00b2",
    "0x1",
    "1_0",
]


def pieces_of(chance: random.Random, body: bytes) -> list[bytes]:
    """Return *body* cut at random places."""
    cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.choice([0, 1, 3, 20])))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def noise(chance: random.Random, body: bytes, bites: list[bytes]) -> bytes:
    """Return *body* with a few places changed."""
    new = bytearray(body)
    for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
        at = chance.randrange(len(new) + 1)
        match chance.randrange(3):
            case 0:
                new[at:at] = chance.choice(bites)
            case 1:
                del new[at : at + chance.choice([1, 2, 10])]
            case _:
                new[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(new)


# --- forms ---

_FORM_BITES = [
    b"\r\n",
    b"\r",
    b"\n",
    b"--",
    b"--x",
    b"\r\n--x\r\n",
    b"\r\n--x--\r\n",
    b'"',
    b";",
    b"\0",
    b"name=",
    b":",
]
_HEADS = [
    b'Content-Disposition: form-data; name="spec"', b'Content-Disposition: form-data; name="source"; filename="s.zip"',
    b"content-disposition: form-data; name=spec; filename*=UTF-8''%ff", b"Content-Type: application/json", b"X: y",
    b'Content-Disposition: form-data; filename="C:\\a\\b"; name="a"', b"Content-Disposition:", b": x", b"a" * 500,
]  # fmt: skip


async def _form(body: list[bytes]) -> tuple[str, list[tuple[str, str | None, bytes]]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for piece in body:
            yield piece

    found: list[tuple[str, str | None, bytes]] = []
    try:
        async with aclosing(chunks()) as read, aclosing(parts("multipart/form-data; boundary=x", read)) as given:
            async for part in given:
                content = await part.content(5000)
                found += [(part.name, part.filename, content)]
    except WherryError as error:
        expect(error.code in ("bad_form", "too_large"), f"a form is refused as {error.code}")
        return error.code, found
    return "", found


def form(chance: random.Random, loop: asyncio.AbstractEventLoop) -> str:
    """However a form is cut into pieces, the same comes out of it."""
    body = b""
    for _ in range(chance.choice([0, 1, 2, 2, 3])):
        head = b"\r\n".join(chance.choice(_HEADS) for _ in range(chance.choice([1, 1, 2, 3])))
        body += b"--x\r\n" + head + b"\r\n\r\n" + chance.choice([b"", b"{}", b"x" * 100, b"x" * 6000, b"\r\n-", b"\r"])
        body += b"\r\n"
    body = noise(chance, body + b"--x--\r\n", _FORM_BITES)
    whole, found = loop.run_until_complete(_form([body]))
    cut, same = loop.run_until_complete(_form(pieces_of(chance, body)))
    # Of a broken form more or less comes out before that shows.
    expect(bool(whole) == bool(cut), f"broken only where it is cut elsewhere: {whole!r} {cut!r}")
    expect(whole or found == same, f"other parts where it is cut elsewhere: {found}, {same}")
    return whole or f"{len(found)} parts"


# --- headers ---


def header(chance: random.Random, loop: asyncio.AbstractEventLoop) -> str:
    """A range is inside, or refused; a file's name cannot break out of its header; metadata are pairs of text."""
    match chance.randrange(3):
        case 0:
            text = "".join(
                [chance.choice(["bytes=", "bytes=", "bytes = ", "", "lines="]), chance.choice(_DIGITS),
                 chance.choice(["-", "-", "-", "--", ","]), chance.choice(_DIGITS), chance.choice(["", ",", ",5-6"])]
            )  # fmt: skip
            size = chance.choice([0, 1, 5, 2**40])
            try:
                span = ranges.span(text, size)
            except WherryError as error:
                expect(error.code == "range_not_satisfiable", error.code)
                return error.code
            expect(span is None or 0 <= span.start < span.end <= size == span.size, f"{text[:80]!r}: {span}")
            return "range" if span else "whole"
        case 1:
            name = "".join(chance.choice(["a", '"', "\\", "\r\n", "\n", ";", "/", "..", "ü", "\ud800", "%", "\0", "'"])
                           for _ in range(chance.randrange(8)))  # fmt: skip
            line = ranges.attachment(name)
            expect(line.isascii() and line.isprintable(), f"{name!r} breaks out of its header: {line!r}")
            expect(line.partition('filename="')[2].count('"') == 1, f"{name!r} breaks out of its quotes: {line!r}")
            return "name"
        case _:
            value = base64.b64encode(chance.randbytes(chance.randrange(20))).decode()
            pair = chance.choice(["filename", "a", "ü", "", "x" * 300]) + chance.choice([" ", "", "  ", "\t"]) + value
            text = noise(chance, ",".join([pair, chance.choice([pair, "k", "b eA=="])]).encode(), [b",", b" ", b"="])
            try:
                found = tus.metadata(text.decode("latin-1"))
            except WherryError as error:
                expect(error.code == "bad_request", error.code)
                return error.code
            expect(all(key and isinstance(said, str) for key, said in found.items()), f"{found}")
            return "metadata"


# --- what programs print ---

_PRINTED = [
    b"::progress 0.5::half", b"::progress 50%", b"::progress 1e999", b"::progress -1", b"::progress nan",
    b"::progress .", b"::progress " + b"9" * 5000, b"::progress", b"::metric", b"::",
    b"::metric loss=0.1 step=3", b"::metric loss=nan acc=1e400 step=1e300", b"::metric a=1 step=" + b"9" * 5000,
    b"::metric \xff=1 =2 a= b=\xd9\xa1", b"::metric a=1_0 step=-9e18", b"::metric a=1 step=9223372036854775807",
    b" 45%|####5     | 45/100", b"\r100%|#| 1/1", b"999%|#| 9/9", b"3/7 [===>...]", b"1/" + b"9" * 5000 + b" [==>..]",
    b"9" * 30 + b"/1 [==>..]", b"1/0 [=>.]", b"\xd9\xa3/\xd9\xa4 [=>.]",
    b"\x1b[31mred\x1b[0m", b"\b\b\b", b"\xff\xfe", b"\0", b"x" * 9000, "größe".encode(),
]  # fmt: skip


def printed(chance: random.Random, loop: asyncio.AbstractEventLoop) -> str:
    """Whatever a program prints, all of it becomes the same lines and metrics, however it is cut into pieces."""
    body = b"".join(chance.choice(_PRINTED) + chance.choice([b"\n", b"\n", b"\r", b"\r\n", b""]) for _ in range(4))
    body = noise(chance, body, [b"\n", b"\r", b"=", b"%", b"::", b"9", b" "])
    whole = _read([body], restarted=False)
    cut = _read(pieces_of(chance, body), restarted=chance.random() < 0.3)
    expect(whole == cut, f"other lines where it is cut elsewhere: {str(whole)[:300]}, {str(cut)[:300]}")
    return f"{len(whole[0])} lines"


def _read(pieces: list[bytes], *, restarted: bool) -> tuple[list[tuple[int, str]], list[tuple[str, float, int | None]]]:
    parser = OutputParser()
    said = []
    for piece in pieces:
        said.append(parser.feed("o", _NOW, piece))
        if restarted:
            parser = OutputParser.restored(json.loads(json.dumps(parser.saved())))
    said.append(parser.finish(_NOW))
    metrics = [point for one in said for point in one.metrics]
    for one in said:
        expect(one.progress is None or 0 <= one.progress.fraction <= 1, "progress")
        expect(one.progress is None or json.loads(one.progress.model_dump_json()), "progress that is no JSON")
    for point in metrics:
        expect(math.isfinite(point.value), "a metric that is no number")
        expect(point.step is None or abs(point.step) < 2**63, f"a step that no database takes: {point.step}")
    return (
        [(line.n, line.x) for one in said for line in one.lines],
        [(point.name, point.value, point.step) for point in metrics],
    )


TARGETS: dict[str, Callable[[random.Random, asyncio.AbstractEventLoop], str]] = {
    "forms": form, "headers": header, "printed": printed,
}  # fmt: skip
