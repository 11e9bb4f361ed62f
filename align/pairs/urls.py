"""Addresses of pictures: one spelling for each, resolved against their page, and `data:` URIs decoded.

Most addresses are simple (a host or a path of plain characters): one regular expression recognises them, and they are
joined here. All others go through `urllib`. Both ways give the same spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus, unquote_to_bytes, urldefrag, urljoin, urlsplit, urlunsplit

from align.pairs.text import MAX_CHARACTERS

#: Characters of a URL that are kept; all others are percent-encoded, as browsers do before they send a request.
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"
_PORTS = {"http": ":80", "https": ":443"}
#: The most bytes in a data: URI. Each table on its way stores it, so this bounds memory.
MAX_INLINE_BYTES = 1 << 20
#: Characters of an invalid address that are kept.
_SHOWN = 2048
#: The problem of an address that is too long. Servers refuse such a request line; 8,192 bytes are the usual limit.
TOO_LONG = "URL too long"

_PLAIN = r"\w\-~!$%&'()*+,=@"
_QUERY = rf"(?:\?[{_PLAIN}./:?]+)?"
_HOST = r"https?://[a-z0-9][a-z0-9.\-]*"
#: No segment begins with a dot or is empty, so there is nothing to normalise.
_SEGMENT = rf"[{_PLAIN}][{_PLAIN}.]*"
_CANONICAL = re.compile(rf"{_HOST}/[{_PLAIN}./:]*{_QUERY}", re.ASCII)
_SIMPLE_BASE = re.compile(rf"({_HOST})/((?:{_SEGMENT}/)*(?:{_SEGMENT})?){_QUERY}", re.ASCII)
_RELATIVE = re.compile(rf"(/|(?:\.\./)*)((?:{_SEGMENT}/)*{_SEGMENT}{_QUERY})", re.ASCII)
#: A simple address: its host ends in letters, and it has no escapes, query or segments to normalise; the group is its
#: identity.
_SIMPLE = re.compile(rf"(?!.*%)https?://(?:www\.)?((?:[a-z0-9\-]+\.)+[a-z]+(?:/{_SEGMENT})*)/?", re.ASCII)
#: Names of parameters that say how a visitor came, not what is asked for.
_TRACKING = re.compile(
    r"(?:utm|mtm|pk|piwik|matomo)_\w+|(?:fb|g|d|y|tw|tt)clid|msclkid|gclsrc|[gw]braid|igsh(?:id)?|mc_[ce]id|_g[al]|"
    r"_hs(?:enc|mi)|mkt_tok|oly_(?:anon|enc)_id|vero_id|srsltid|epik",
    re.IGNORECASE | re.ASCII,
)
#: Longer ones are never requested.
_MAX_HOST = 1000
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")
_HAS_HOST = re.compile(r"https?://[^/?:]")


class Address(NamedTuple):
    """Where a picture is.

    Attributes:
        url: canonical, or as written if it cannot be requested; `data:<type>;sha256=<hex>` for a data: URI.
        problem: why it can never give a picture; or None.
        inline: the bytes in a data: URI; or None.
    """

    url: str
    problem: str | None = None
    inline: bytes | None = None


def canonical_url(url: str) -> str:
    """One spelling per address: no fragment, scheme and host in lower case, no default port, unsafe characters encoded.

    Raises ValueError if it is not a URL.
    """
    if _CANONICAL.fullmatch(url):
        return url
    parts = urlsplit(urldefrag(url.strip())[0])
    host = parts.netloc.lower().removesuffix(_PORTS.get(parts.scheme, "\n"))
    path = parts.path or ("/" if host else "")
    return urlunsplit((parts.scheme, host, quote(path, safe=_URL_SAFE), quote(parts.query, safe=_URL_SAFE), ""))


def canonical_or_as_is(url: str) -> str:
    """The canonical spelling; a text that is not a URL is returned unchanged."""
    try:
        return canonical_url(url)
    except ValueError:
        return url


def identity(url: str) -> str:
    """The same text for all addresses that name the same thing, for comparisons only.

    One scheme stands for http and https. It has no credentials, fragment or default port, no `www.`, no empty segment,
    and no parameter that only tracks; `.` and `..` are resolved, escapes undone, parameters sorted, and the host is
    spelt by `host_name`. Rarely, two things have one identity. A text without host, such as the name of a file, is
    returned unchanged.
    """
    if simple := _SIMPLE.fullmatch(url):
        return f"http://{simple[1]}"
    try:
        parts = urlsplit(urldefrag(url.strip())[0])
        port = parts.port
    except ValueError:
        return url
    if not parts.hostname:
        return url
    is_web = parts.scheme in _PORTS
    host = host_name(parts.hostname)
    host = host.removeprefix("www.") if "." in host[4:] else host
    if port is not None and not (is_web and f":{port}" in _PORTS.values()):
        host = f"{host}:{port}"
    segments: list[str] = []
    for segment in unquote(parts.path).split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    query = sorted(one for one in unquote_plus(parts.query).split("&") if one and not _tracks(one))
    address = "/".join([f"{'http' if is_web else parts.scheme}://{host}", *segments])
    return f"{address}?{'&'.join(query)}" if query else address


def _tracks(parameter: str) -> bool:
    return _TRACKING.fullmatch(parameter.partition("=")[0]) is not None


def host_name(host: str) -> str:
    """One spelling of a host: lower case, ASCII (IDNA), no dot at the end; an IP address as people write it.

    An IPv4 address in the form of an IPv6 one (`::ffff:192.0.2.1`) becomes the IPv4 address.
    """
    name = unquote(host).lower()
    if len(name) > _MAX_HOST:
        return name
    if not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("idna").decode("ascii").lower()
    name = name.rstrip(".")
    with suppress(OSError, ValueError):
        if ":" in name:
            address = ip_address(name)
            name = str(getattr(address, "ipv4_mapped", None) or address)
        elif _NUMBER.fullmatch(name):  # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1
            name = socket.inet_ntoa(socket.inet_aton(name))
    return name


class Resolver:
    """Resolves the addresses in a page against the page's own address (or its <base>).

    Attributes:
        base: absolute, or empty if unknown: then only absolute addresses can be resolved.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        simple = _SIMPLE_BASE.fullmatch(base) if len(base) <= _SHOWN else None  # bounds the folders together
        self._folders: list[str] = []  # of the base, innermost first
        if simple:
            origin, segments = str(simple[1]), str(simple[2]).split("/")[:-1]
            self._folders = ["/".join([origin, *segments[:depth], ""]) for depth in range(len(segments), -1, -1)]

    def simply_joined(self, url: str) -> str | None:
        """The canonical spelling of a simple address; None for others."""
        if len(url) > MAX_CHARACTERS:
            return None
        if _CANONICAL.fullmatch(url):
            return url
        if self._folders and (relative := _RELATIVE.fullmatch(url)):
            up, rest = relative.groups()
            depth = -1 if up == "/" else min(len(up) // 3, len(self._folders) - 1)
            return self._folders[depth] + rest
        return None

    def joined(self, url: str) -> str:
        """The canonical spelling of an absolute or relative URL. Raises ValueError if it is not one."""
        return self.simply_joined(url) or canonical_url(urljoin(self.base, url.strip()))

    def resolve(self, source: str) -> Address:
        """The address that `source` means; `problem` says why it cannot be requested."""
        url = self.simply_joined(source)
        if url is not None:
            return address_of(url)
        if source[:5].lower() == "data:":
            return _inline(source)
        if len(source) > MAX_CHARACTERS:
            return Address(source[:_SHOWN], TOO_LONG)
        try:
            url = self.joined(source)
            scheme = urlsplit(url).scheme  # joining can give a text that is not a URL any more
        except ValueError:
            return Address(source[:_SHOWN], "invalid URL")
        if not _HAS_HOST.match(url):
            return Address(url[:_SHOWN], "invalid URL" if scheme in ("", *_PORTS) else "not http or https")
        return address_of(url)


def address_of(url: str) -> Address:
    """The address of a URL as it has to be requested, unless it is too long."""
    return Address(url) if len(url) <= MAX_CHARACTERS else Address(url[:_SHOWN], TOO_LONG)


def _inline(uri: str) -> Address:
    """The content of a data: URI: base64 (also unpadded, URL-safe or broken over lines) or percent-encoded bytes."""
    uri = uri.encode("utf-8", "replace").decode("utf-8")  # half a surrogate has no bytes
    head, comma, payload = uri[5:].partition(",")
    media_type, *parameters = (part.strip().lower() for part in head.split(";"))
    shown = uri[:64]
    if len(payload) > 3 * MAX_INLINE_BYTES:  # every byte percent-encoded
        return Address(shown, "data: URL too large")
    data = unquote_to_bytes(payload)
    if "base64" in parameters:
        text = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        try:
            data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except binascii.Error:
            return Address(shown, "broken data: URL")
    if not comma or not data:
        return Address(shown, "broken data: URL")
    if len(data) > MAX_INLINE_BYTES:
        return Address(shown, "data: URL too large")
    kind = quote(media_type[:64] or "text/plain", safe="/+.")
    return Address(f"data:{kind};sha256={hashlib.sha256(data).hexdigest()}", None, data)
