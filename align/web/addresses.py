"""URLs in the form that is requested, and the addresses that sockets may be opened to.

A page of a crawl can name any address, even one inside the operator's network. The check applies to the address that a
socket is opened to: a name may resolve to any address, and to a different one each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urlsplit

#: IPv6 addresses that stand for IPv4 ones: translated (NAT64, RFC 6052), and compatible (long deprecated).
_NAT64 = ip_network("64:ff9b::/96")
_COMPATIBLE = ip_network("::/96")
#: Redirects that are followed from an address.
MAX_REDIRECTS = 5
#: Servers accept about 8 KB.
_MAX_CHARACTERS = 16_384
#: A name has at most 253; converting one of 16,000 characters from Unicode takes a tenth of a second.
_MAX_HOST_CHARACTERS = 1000
_PORTS = {"http": 80, "https": 443}
#: Characters that a browser does not escape in a path or query; `%`, too, so that escaped ones stay as they are.
_SAFE = "%/:?#[]@!$&'()*+,;=~-._|^{}\\`\"<>"
_PLAIN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of a URL.

    Attributes:
        url: as it is requested: without credentials and fragment, ASCII only.
        origin: scheme, host and port; limits and robots.txt apply to one origin.
        host: as people read it: with the port only where it is not the default of the scheme.
    """

    url: str
    origin: str
    host: str


def target_of(url: str) -> Target:
    """The target of a URL as a page or table writes it.

    Raises:
        ValueError: it is neither http nor https, or has no usable host or port.
    """
    if len(url) > _MAX_CHARACTERS:
        raise ValueError(f"longer than {_MAX_CHARACTERS:,} characters")
    parts = urlsplit(url.strip())
    scheme = parts.scheme
    if scheme not in _PORTS:
        raise ValueError(f"scheme {scheme[:20]!r} is neither http nor https")
    host = parts.hostname or ""
    if len(host) > _MAX_HOST_CHARACTERS:
        raise ValueError("no usable host")
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
    """The address, or the addresses that it stands for."""
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
