"""Which network addresses may be connected to: public ones, and those that a recipe names.

A list of URLs is written by strangers, and a machine of a cluster can reach what they cannot: a metadata service, a
database, itself. So the address is judged when a socket for it is made. How the URL spelled it (a name, a decimal or
octal number, IPv6 with IPv4 inside, a redirect) and what a name server answers the second time make no difference.
The table of special addresses is our own (IANA's registries of special-purpose addresses, and what clouds answer on
public numbers), since Python's differs from version to version and passes some of these.
Price paid: no proxy is used, since a proxy would make the connection itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SPECIAL_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers; Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "161.26.0.0/16",  # services inside of IBM's cloud
        "166.8.0.0/14",  # the same
        "168.63.129.16/32",  # Azure's WireServer: metadata, keys
        "169.254.0.0/16",  # link-local; metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
"""Where public IPv6 addresses lie; all else is loopback, local, multicast, deprecated or unassigned."""
SPECIAL_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""What a network without IPv4 makes of a public IPv4 address; judged by that one."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""How the lower half of an address begins that carries an IPv4 address into a site."""


class PrivateAddress(OSError):
    """A connection to an address that is not public and not allowed."""

    def __init__(self) -> None:
        super().__init__("the address is private, loopback, link-local, multicast or reserved")


@dataclass(frozen=True, slots=True)
class Allowed:
    """A network, or one port of it, that may be connected to although it is not public."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """From ``10.0.0.0/8``, ``127.0.0.1``, ``127.0.0.1:8000``, ``fd00::/8`` or ``[::1]:8000``.

        Raises:
            ValueError: it is none of these. Names are refused: whoever owns one can point it anywhere.
        """
        host, port = text, None
        if text.startswith("[") and "]" in text:
            host, _, rest = text[1:].partition("]")
            port = rest.removeprefix(":") or None
        elif text.count(":") == 1:
            host, port = text.split(":")
        try:
            return cls(ipaddress.ip_network(host), None if port is None else int(port))
        except ValueError:
            raise ValueError(
                f"{text!r} is no address; write 127.0.0.1:8000, 10.0.0.0/8 or [::1]:8000 (names are not taken)"
            ) from None

    def covers(self, address: Address, port: int) -> bool:
        return address in self.network and self.port in (None, port)


def is_public(address: Address) -> bool:
    """Whether anyone on the internet could mean this address; of IPv6 with IPv4 inside, the latter must be public."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in SPECIAL_4)
    number = int(address)
    inside = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return is_public(inside)
    if number >> 32 & 0xFFFFFFFF in _ISATAP and not is_public(inside):
        return False
    return address in GLOBAL_6 and not any(address in network for network in SPECIAL_6)


class Guard:
    """Makes sockets, for allowed addresses only: the `socket_factory` of an aiohttp connector."""

    def __init__(self, allowed: Sequence[Allowed]) -> None:
        self._allowed = tuple(allowed)

    def permits(self, host: str, port: int) -> bool:
        """Whether the numeric address `host` may be connected to."""
        address: Address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return is_public(address) or any(one.covers(mapped or address, port) for one in self._allowed)

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for one result of `getaddrinfo`.

        Raises:
            PrivateAddress: it may not be connected to.
        """
        family, kind, protocol, _, target = info
        if not self.permits(target[0], target[1]):
            raise PrivateAddress
        return socket.socket(family=family, type=kind, proto=protocol)
