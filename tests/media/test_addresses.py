"""Which addresses are public: every row of IANA's registries of special-purpose addresses, on every Python."""

import ipaddress

import pytest

from videollava_jax.media.addresses import NOT_PUBLIC, NOT_PUBLIC_IPV6, is_public

# The registries' rows, and addresses that are not of them but are no host's either.
SPECIAL = (
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
    "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "255.255.255.255/32", "::/128", "::1/128", "::ffff:0:0/104", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64",
    "2001::/23", "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32",
    "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16",
    "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "::/96",
)  # fmt: skip


@pytest.mark.parametrize("row", SPECIAL)
def test_special_purpose_networks_are_not_public(row):
    network = ipaddress.ip_network(row)
    for at in {0, 1, network.num_addresses // 2, network.num_addresses - 1}:
        if at < network.num_addresses:
            assert not is_public(network[at]), network[at]


@pytest.mark.parametrize("network", [*NOT_PUBLIC, *NOT_PUBLIC_IPV6], ids=str)
def test_networks_end_where_they_should(network):
    """The neighbours of each network are public, unless they belong to another one."""
    others = [other for other in (*NOT_PUBLIC, *NOT_PUBLIC_IPV6) if other != network]
    for neighbour in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= neighbour < 2**network.max_prefixlen:
            address = type(network[0])(neighbour)
            within = any(address in other for other in others if other.version == address.version)
            assert is_public(address) != within, address


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("1.1.1.1", True), ("223.255.255.255", True), ("192.0.1.1", True), ("2606:4700::1111", True),
        ("2a00:1450:4001::1", True), ("2001:4860:4860::8888", True),
        # Other spellings of IPv4 addresses.
        ("::ffff:8.8.8.8", True), ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False),
        ("64:ff9b::808:808", True), ("64:ff9b::7f00:1", False), ("64:ff9b::a9fe:a9fe", False), ("::8.8.8.8", False),
        ("2002:808:808::", False), ("2001:0:808:808::", False), ("fe80::1%eth0", False), ("2606:4700::1111%1", False),
        ("4000::1", False), ("1fff::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) == public
