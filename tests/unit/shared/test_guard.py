import pytest

from shared.guard import is_named, is_public, refusal, url_refusal


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1",
        "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "192.88.99.1", "224.0.0.1", "239.255.255.255",
        "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001::1", "2001:0:4136:e378::1",
        "2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1", "3fff::1",
        "2606:4700::1%1", "", "localhost", "0x7f000001", "2130706433", "127.1", "1.2.3", "1.2.3.4.5",
    ],
)  # fmt: skip
def test_an_address_that_is_not_everybodys_is_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255",
     "172.32.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1",
     "2001:4860:4860::8888"],
)  # fmt: skip
def test_addresses_just_outside_of_the_blocks_are_public(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    ("scheme", "host", "port"),
    [
        ("http", "example.org", 80), ("http", "example.org", 443), ("ftp", "example.org", 443), ("file", "", 443),
        ("https", "example.org", 22), ("https", "example.org", 4222), ("https", "127.0.0.1", 443),
        ("https", "[::1]", 443), ("https", "::ffff:10.0.0.1", 8443), ("https", "169.254.169.254", 443),
    ],
)  # fmt: skip
def test_other_schemes_ports_and_private_addresses_are_refused(scheme: str, host: str, port: int):
    assert refusal(scheme, host, port)


@pytest.mark.parametrize(("host", "port"), [("example.org", 443), ("example.org", 8443), ("1.1.1.1", 443)])
def test_https_to_a_name_or_a_public_address_may_go(host: str, port: int):
    assert refusal("https", host, port) is None


def test_the_operator_names_a_host_with_its_port_and_nothing_else():
    allowed = {"Hooks.Local:9000", "[::1]:8080"}
    assert is_named("hooks.local", 9000, allowed)
    assert is_named("hooks.local.", 9000, allowed)
    assert is_named("::1", 8080, allowed)
    assert not is_named("hooks.local", 9001, allowed)
    assert not is_named("evil-hooks.local", 9000, allowed)
    assert not is_named("local", 9000, allowed)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "https://127.0.0.1/", "https://user@example.org/", "https://user:pw@10.0.0.1:8025/",
     "https://example.org:22/", "https://[::1]/", "https://[fe80::1%25eth0]/", "ftp://10.0.0.1:8025/", "//example.org/",
     "x", "", "https://", "https://example.org:99999/", "http://10.0.0.1:8026/"],
)  # fmt: skip
def test_urls_that_may_not_be_called_are_refused(url: str):
    assert url_refusal(url, {"10.0.0.1:8025"})


@pytest.mark.parametrize(
    "url", ["https://example.org", "https://example.org:8443/x?y#z", "http://10.0.0.1:8025/x", "HTTPS://EXAMPLE.ORG/"]
)
def test_urls_of_public_and_of_named_places_pass(url: str):
    assert url_refusal(url, {"10.0.0.1:8025"}) is None
