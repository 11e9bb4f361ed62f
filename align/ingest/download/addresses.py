"""URLs in the form that is requested, and the addresses that may be connected to.

A page of a crawl can name any address, also one inside the operator's network. What counts is the address that a socket
is really opened to: names resolve to anything, and to something else the next time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urlsplit

#: Of IPv6 that stand for IPv4: translated (NAT64, RFC 6052) and, long deprecated, compatible.
_NAT64 = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
#: Servers take 8 KB or so.
_MAX_CHARACTERS = 16_384
_PORTS = {"http": 80, "https": 443}
#: What a browser leaves as it is in a path or a query; `%` too, since what is escaped already stays so.
_SAFE = "%/:?#[]@!$&'()*+,;=~-._|^{}\\`\"<>"
_PLAIN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a URL leads.

    Attributes:
        url: as it is requested: without credentials and fragment, ASCII only.
        origin: scheme, host and port; limits and robots.txt hold for one of these.
        host: as people read it: the port only where it is not the scheme's own.
    """

    url: str
    origin: str
    host: str


def target_of(url: str) -> Target:
    """A URL as a page or table has it, made ready.

    Raises:
        ValueError: it is none of http or https, or has no usable host or port.
    """
    if len(url) > _MAX_CHARACTERS:
        raise ValueError(f"longer than {_MAX_CHARACTERS:,} characters")
    parts = urlsplit(url.strip())
    scheme = parts.scheme
    if scheme not in _PORTS:
        raise ValueError(f"scheme {scheme[:20]!r} is neither http nor https")
    host = parts.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    if not host or not _PLAIN.fullmatch(host) or "%" in host:
        raise ValueError("no usable host")
    if ":" in host:
        host = f"[{host}]"
    port = parts.port or _PORTS[scheme]
    if port != _PORTS[scheme]:
        host = f"{host}:{port}"
    path = parts.path or "/"
    if parts.query:
        path = f"{path}?{parts.query}"
    if not _PLAIN.fullmatch(path):
        path = quote(path, safe=_SAFE)
    origin = f"{scheme}://{host}"
    return Target(origin + path, origin, host)


def address_policy(allow_networks: Iterable[str]) -> Callable[[str, int], bool]:
    """Whether a socket may be opened to (address, port): public addresses, and those in `allow_networks` (CIDR).

    An IPv6 address that stands for an IPv4 one (mapped, compatible, 6to4, Teredo, NAT64) counts as both.
    """
    allowed = [ip_network(network) for network in allow_networks]

    def may_connect(address: str, port: int) -> bool:
        del port
        ips = _meanings(ip_address(address))
        return any(ip in network for ip in ips for network in allowed) or all(map(_is_public, ips))

    return may_connect


def _meanings(ip: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, or what it is translated to on its way."""
    if ip.version == 4:
        return [ip]
    if ip.ipv4_mapped:
        return [ip.ipv4_mapped]
    if ip in _NAT64 or (ip in _COMPATIBLE and int(ip) > 1):
        return [IPv4Address(int(ip) & 0xFFFFFFFF)]
    if ip.sixtofour:
        return [ip.sixtofour]
    return list(ip.teredo or (ip,))


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    refused = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not refused and not (ip.version == 6 and ip.is_site_local)
