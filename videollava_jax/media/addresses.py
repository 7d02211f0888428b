"""Which addresses are public: IANA's registries of special-purpose addresses, not Python's, which differ by version.

Sources: https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry; RFC 3879 for
fec0::/10, RFC 5735 and RFC 1112 for 240.0.0.0/4, RFC 4291 for addresses that embed others. No JAX.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, with the metadata of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # relays of 6to4, given up
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, with the broadcast address
        ),
    )
)
"""IPv4 networks without public hosts."""

PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
"""All that IANA has given out for public IPv6 addresses; anything else is special or reserved."""

NOT_PUBLIC_IPV6 = tuple(
    map(
        ipaddress.ip_network,
        (
            "2001::/23",  # IETF protocol assignments: Teredo, benchmarks, ORCHID and others
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, given up: leads to IPv4 addresses
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
"""Parts of `PUBLIC_IPV6` without public hosts."""

_MAPPED = ipaddress.ip_network("::ffff:0:0/96")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Returns whether an address is that of a public host.

    An IPv6 address that is only another spelling of an IPv4 address (mapped, or NAT64's) is public if that one is.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC)
    if address in _MAPPED or address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.scope_id is not None:
        return False  # of one link
    return address in PUBLIC_IPV6 and not any(address in network for network in NOT_PUBLIC_IPV6)
