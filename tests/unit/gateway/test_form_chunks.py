from collections.abc import AsyncIterator

import pytest

from services.gateway.adapters.form import parts

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{}\r\n'
    b'--b\r\nContent-Disposition: form-data; name="source"; filename="x.zip"\r\n\r\nPK\r\n--b--\r\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, 50, len(BODY)])
async def test_each_part_keeps_its_name_however_the_form_is_cut(size: int) -> None:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(BODY), size):
            yield BODY[start : start + size]

    found = [
        (part.name, part.filename, await part.content(100))
        async for part in parts("multipart/form-data; boundary=b", body())
    ]
    assert found == [("spec", None, b"{}"), ("source", "x.zip", b"PK")]
