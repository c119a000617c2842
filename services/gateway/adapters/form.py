"""Multipart forms as they arrive: one part after the other, never a whole one in memory or on disk."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import QueryParams

from shared.errors import WherryError

_BEGIN, _DATA, _END = "begin", "data", "end"


class Part:
    """One field or file of a form. Its content can be taken once, before the next part is asked for."""

    def __init__(self, name: str, filename: str | None, reader: "_Reader") -> None:
        self.name = name
        self.filename = filename
        self._reader = reader
        self._done = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the content in pieces of any size.

        Raises:
            WherryError: ``bad_form``: the form ends before the part does.
        """
        while not self._done:
            kind, content = await self._reader.next()
            if kind == _DATA:
                yield content
            else:
                self._done = True

    async def content(self, bytes_max: int) -> bytes:
        """Return the whole content.

        Raises:
            WherryError: ``too_large`` above *bytes_max*, ``bad_form``.
        """
        held = bytearray()
        async for chunk in self.chunks():
            held += chunk
            if len(held) > bytes_max:
                raise WherryError("too_large", f"The part {self.name!r} may have {bytes_max} bytes.")
        return bytes(held)


async def parts(content_type: str, body: AsyncIterator[bytes]) -> AsyncGenerator[Part, None]:
    """Give the parts of a multipart *body* in order.

    Raises:
        WherryError: ``bad_form``.
    """
    reader = _Reader(content_type, body)
    while (head := await reader.next_head()) is not None:
        part = Part(*head, reader)
        yield part
        async for _ in part.chunks():  # what nobody wanted
            pass


async def fields_of(content_type: str, body: bytes) -> dict[str, str] | None:
    """Return the fields of a form that has come whole, as browsers and curl send it; None where it is no form.

    Raises:
        WherryError: ``bad_form``.
    """
    match content_type.partition(";")[0].strip().lower():
        case "multipart/form-data":
            found = parts(content_type, _once(body))
            return {part.name: (await part.content(len(body))).decode(errors="replace") async for part in found}
        case "application/x-www-form-urlencoded":
            return dict(QueryParams(body.decode(errors="replace")))
        case _:
            return None


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


class _Reader:
    """The parser's callbacks as a queue of what they said."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise WherryError("bad_form", "The Content-Type names no boundary.")
        self._body = body
        self._said: deque[tuple[str, bytes]] = deque()
        self._headers: dict[bytes, bytes] = {}  # of the part that the parser is in, which may be ahead of the reader
        self._heads: deque[dict[bytes, bytes]] = deque()
        self._field = self._value = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._said.append((_DATA, data[start:end])),
                    "on_part_end": lambda: self._said.append((_END, b"")),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise WherryError("bad_form", f"The Content-Type cannot be read: {error}.") from error

    async def next(self) -> tuple[str, bytes]:
        while not self._said:
            if self._ended:
                raise WherryError("bad_form", "The form has ended.")
            await self._read()
        return self._said.popleft()

    async def next_head(self) -> tuple[str, str | None] | None:
        while not self._said:
            if self._ended:
                return None
            await self._read()
        self._said.popleft()
        _, options = parse_options_header(self._heads.popleft().get(b"content-disposition", b""))
        if b"name" not in options:
            raise WherryError("bad_form", "A part of the form has no name.")
        filename = options.get(b"filename")
        return _text(options[b"name"]), None if filename is None else _text(filename)

    async def _read(self) -> None:
        try:
            chunk = await anext(self._body)
        except StopAsyncIteration:
            raise WherryError("bad_form", "The form ends in the middle: the upload was cut.") from None
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise WherryError("bad_form", f"The form cannot be read: {error}.") from error

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers_finished(self) -> None:
        self._heads.append(dict(self._headers))
        self._said.append((_BEGIN, b""))

    def _on_end(self) -> None:
        self._ended = True


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
