from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core import sse


def test_an_event_has_id_name_and_data() -> None:
    assert sse.frame('{"a":1}', event="log", event_id="1.7") == b'id: 1.7\nevent: log\ndata: {"a":1}\n\n'


@given(st.text())
def test_no_content_breaks_out_of_its_event(text: str) -> None:
    frame = sse.frame(text, event="x")
    assert frame.count(b"\n\n") == 1
    assert frame.endswith(b"\n\n")
    lines = frame.decode().split("\n")[1:-2]
    assert all(line.startswith("data: ") for line in lines)
    assert "\n".join(line[6:] for line in lines) == text.replace("\r\n", "\n").replace("\r", "\n")
