"""What sites say about robots: robots.txt (RFC 9309) and the header X-Robots-Tag.

Of a robots.txt only the rules for us are kept, as lines: a host costs some hundred bytes, so that very many can be
remembered, and a question some microseconds. (Protego keeps 36 KB of 60 rules, and parses them in 0.3 ms: with many
hosts in turn either the memory or the time of that would be most of the whole.)
"""

from __future__ import annotations

import re
from typing import Final

#: RFC 9309, 2.5: at least so much must be read; the rest is cut off.
MAX_BYTES: Final = 500 * 1024
#: An answer holds for a day (RFC 9309, 2.4).
LIFETIME_S: Final = 24 * 3600.0

#: Of an image: not for machine learning, not for collections at all; `none` is `noindex, nofollow`. As img2dataset.
_OPT_OUTS: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
#: Directives that have a colon themselves: what stands before it names no robot.
_WITH_VALUE: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TOKEN: Final = re.compile(r"[A-Za-z_-]+")
#: Misspellings that Google's parser takes for what they mean.
_DISALLOW: Final = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})
_AGENT: Final = frozenset({"user-agent", "useragent", "user agent"})
_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})|[^!-~]")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_PATH: Final = re.compile(r"https?://[^/?]*")


def token_of(user_agent: str) -> str:
    """The product token that sites address rules to: `align-ingest` of `align-ingest/0.1 (+https://...)`."""
    match = _TOKEN.match(user_agent)
    return match[0].lower() if match else "*"


def rules_for(token: str, data: bytes) -> str:
    """The rules of a robots.txt for the robot `token`, else those for `*`.

    Returns:
        A rule a line, `+` or `-` and a pattern; the one that counts more comes first: the longer, then the permission.
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
    """Whether those rules permit the URL: the longest that matches decides, without one it is permitted."""
    path = _normal(_PATH.sub("", url, count=1))
    return next((rule[0] == "+" for rule in rules.split("\n") if rule and _matches(rule[1:], path)), True)


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, `$` at the end for the end; else a pattern is a beginning."""
    is_whole = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    end = len(first)
    if not others:
        return not is_whole or end == len(path)
    *middle, last = others
    for part in middle:
        found = path.find(part, end)
        if found < 0:
            return False
        end = found + len(part)
    return path.endswith(last, end) if is_whole else path.find(last, end) >= 0


def _normal(text: str) -> str:
    """Equal addresses become equal texts: what need not be escaped is not, what must be is, in capitals."""
    return _ESCAPED.sub(_normal_octets, text)


def _normal_octets(match: re.Match[str]) -> str:
    if match[1] is None:
        return "".join(f"%{octet:02X}" for octet in match[0].encode("utf-8", "replace"))
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else match[0].upper()


def opt_out(values: list[str], token: str) -> str | None:
    """The directive among the values of X-Robots-Tag that keeps us from using the picture, if there is one.

    `noai, noimageai` is for all robots; after `somebot:` directives are for that robot alone, up to the next name.
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
