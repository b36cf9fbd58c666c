"""Which internet addresses may be connected to on behalf of a client: public ones, and no other.

Written as a list of what is allowed. An address that carries another in it (mapped, translated, tunnelled) is
refused whatever it carries: nothing public needs to be reached by one.
"""

from __future__ import annotations

import ipaddress
import re

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_REFUSED = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carriers' own, and some clouds' metadata
        "168.63.129.16/32",  # Azure's own services, seen from each of its machines
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "240.0.0.0/4",
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
]
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.IGNORECASE)


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the public internet. False for what is none, too."""
    try:
        ip = ipaddress.ip_address(address)  # one with a scope ("%eth0") is of a network here
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or any(ip in net for net in _REFUSED if net.version == ip.version):
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    is_isatap = (int(ip) >> 32) & 0xFDFFFFFF == 0x00005EFE
    return ip in _GLOBAL_UNICAST and not is_isatap and ip.scope_id is None


def is_odd_number(host: str) -> bool:
    """Whether a host is a number in another form than four decimal ones: ``2130706433``, ``0x7f.1``,
    ``0177.0.0.1``. Resolvers read such forms each in its own way."""
    labels = host.rstrip(".").split(".")
    if not _NUMERIC.fullmatch(labels[-1]):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False
