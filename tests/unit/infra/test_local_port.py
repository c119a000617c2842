import pytest

from infra.local.home import port


def test_the_port_is_8080_unless_it_is_set():
    assert port({}) == 8080
    assert port({"WHERRY_PORT": ""}) == 8080
    assert port({"WHERRY_PORT": "18080"}) == 18080


@pytest.mark.parametrize("text", ["abc", "0", "65536", "-1"])
def test_a_port_that_is_none_is_named(text: str):
    with pytest.raises(ValueError, match=f"WHERRY_PORT is '{text}'"):
        port({"WHERRY_PORT": text})
