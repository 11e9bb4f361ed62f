"""Rules of sites for robots: robots.txt (RFC 9309) and the header X-Robots-Tag.

Only the rules for us are kept, as lines: a host costs a few hundred bytes, so very many hosts can be remembered, and a
check takes a few microseconds. (Protego needs 36 KB for 60 rules and parses them in 0.3 ms; with many hosts in turn,
its memory or its time would dominate.)
"""

from __future__ import annotations

import re
from typing import Final

#: RFC 9309, 2.5: at least this much must be read; the rest is ignored.
MAX_BYTES: Final = 500 * 1024
#: A robots.txt is valid for a day (RFC 9309, 2.4).
LIFETIME_S: Final = 24 * 3600.0

#: Not for machine learning, or not for any collection; `none` is `noindex, nofollow`. The same as in img2dataset.
_OPT_OUTS: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
#: Directives that contain a colon: the text before it is not the name of a robot.
_WITH_VALUE: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TOKEN: Final = re.compile(r"[A-Za-z_-]+")
#: Misspellings that Google's parser accepts.
_DISALLOW: Final = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})
_AGENT: Final = frozenset({"user-agent", "useragent", "user agent"})
_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})|[^!-~]")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_PATH: Final = re.compile(r"https?://[^/?]*")


def token_of(user_agent: str) -> str:
    """The product token to which sites address rules: `align-ingest` of `align-ingest/0.1 (+https://...)`."""
    match = _TOKEN.match(user_agent)
    return match[0].lower() if match else "*"


def rules_for(token: str, data: bytes) -> str:
    """The rules of a robots.txt for the robot `token`, else those for `*`.

    Returns:
        One rule per line: `+` or `-` and a pattern. Longer patterns come first; of equal length, permissions.
    """
    groups: dict[str, set[str]] = {}
    named: list[str] = []
    ended = True
    for line in data[:MAX_BYTES].decode("utf-8-sig", errors="replace").splitlines():
        name, _, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if name in _AGENT:
            if ended:
                named, ended = [], False
            named.append("*" if value.startswith("*") else token_of(value) if _TOKEN.match(value) else "")
            groups.setdefault(named[-1], set())
        elif name == "allow" or name in _DISALLOW:
            ended = True
            if value.startswith(("/", "*")):
                for group in named:
                    groups[group].add(("+" if name == "allow" else "-") + _normal(value))
    rules = groups.get(token, groups.get("*", set()))
    return "\n".join(sorted(rules, key=lambda rule: (-len(rule), rule)))


def may_fetch(rules: str, url: str) -> bool:
    """Whether these rules permit the URL: the longest match decides; without a match it is permitted."""
    path = _normal(_PATH.sub("", url, count=1))
    return next((rule[0] == "+" for rule in rules.split("\n") if rule and _matches(rule[1:], path)), True)


def _matches(pattern: str, path: str) -> bool:
    """Whether the path begins with the pattern, in which `*` is any text and a last `$` the end of the path."""
    is_whole = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    end = len(first)
    if not others:
        return not is_whole or end == len(path)
    *middle, last = others
    for part in middle:
        start = path.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return path.endswith(last, end) if is_whole else path.find(last, end) >= 0


def _normal(text: str) -> str:
    """Makes equal addresses equal texts: escapes what must be escaped, in capitals, and nothing else."""
    return _ESCAPED.sub(_normal_octets, text)


def _normal_octets(match: re.Match[str]) -> str:
    if match[1] is None:
        return "".join(f"%{octet:02X}" for octet in match[0].encode("utf-8", "replace"))
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()


def opt_out(values: list[str], token: str) -> str | None:
    """The directive in the values of X-Robots-Tag that forbids us to use the picture, or None.

    `noai, noimageai` is for all robots; directives after `somebot:` are for that robot, up to the next name.
    """
    for value in values:
        robot = None
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            directive = part.strip()
            if colon and name.strip() not in _WITH_VALUE:
                robot, directive = name.strip(), rest.strip()
            if directive in _OPT_OUTS and robot in (None, "*", token):
                return directive
    return None
