"""Which network addresses may be connected to: public ones, and those that a recipe names.

A list of URLs is written by strangers, and a machine of a cluster can reach what they cannot: a metadata service, a
database, itself. So the address is judged when a socket for it is made. How the URL spelled it (a name, a decimal or
octal number, IPv6 with IPv4 inside, a redirect) and what a name server answers the second time make no difference.
Price paid: no proxy is used, since a proxy would make the connection itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


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
    """Whether anyone on the internet could mean this address; of an IPv6 address with IPv4 inside, both are judged."""
    inside = _inside(address)
    if inside is not None and not is_public(inside):
        return False
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in _NAT64):
        return True
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


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
