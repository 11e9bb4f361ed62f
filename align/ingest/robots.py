"""Rules of sites for robots: robots.txt (RFC 9309), and the headers X-Robots-Tag, Content-Usage and Content-Signal.

Only the rules for us are kept: a host of twenty rules costs some 3 KB, so very many hosts can be remembered, and a
check takes a few microseconds. (Protego needs 36 KB for 60 rules and parses them in 0.3 ms; with many hosts in turn,
its memory or its time would dominate.) All this happens in the downloader's one loop, so it is bounded for any file:
reading one takes tens of milliseconds, and a check at most about one.

Content-Usage is of the IETF's draft-ietf-aipref-attach, such as `train-ai=n`; Content-Signal of contentsignals.org,
such as `search=yes, ai-train=no`. Both are headers, and rules of robots.txt that may begin with a path. Anything but a
plain yes to training counts as no, and so does the stricter of two rules for one path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

#: RFC 9309, 2.5: at least this much must be read; the rest is ignored.
MAX_BYTES: Final = 500 * 1024
#: A robots.txt is valid for a day (RFC 9309, 2.4).
LIFETIME_S: Final = 24 * 3600.0

#: Directives that forbid machine learning, or any collection; `none` is `noindex, nofollow`. img2dataset has the same.
_OPT_OUTS: Final = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
#: Headers, and rules of robots.txt, that say what content may be used for; and how each permits training.
USAGE_FIELDS: Final = ("Content-Usage", "Content-Signal")
_TRAINING: Final = {"train-ai": "y", "ai-train": "yes"}
#: The code of what robots.txt forbids to robots that gather pictures for training (`download.training_robots`).
TRAINING_ROBOTS: Final = "training robots"
#: Directives that contain a colon: the text before it is not the name of a robot.
_WITH_VALUE: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_TOKEN: Final = re.compile(r"[A-Za-z_-]+")
#: The lines that matter: the name of a robot, or a rule. The misspellings are those that Google's parser accepts. No
#: part is tried in two ways (`*+`), so the time is linear.
_LINES: Final = re.compile(
    r"^[^\S\n]*+(?:(user[- ]?agent)|(allow)|disallow|dissallow|dissalow|disalow|diasllow|disallaw|(content-usage)"
    r"|(content-signal))[^\S\n]*+:([^\n#]*+)",
    re.ASCII | re.IGNORECASE | re.MULTILINE,
)
_WHITE: Final = re.compile(r"\s")
#: `**` means the same as `*`.
_STARS: Final = re.compile(r"\*{2,}+")
_HEX: Final = "0123456789ABCDEFabcdef"
#: An escaped octet after its `%`, in normal form: unreserved characters as such (RFC 3986, 2.3), others in capitals.
_ESCAPED: Final = {
    high + low: character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else f"%{high}{low}".upper()
    for high in _HEX
    for low in _HEX
    for character in [chr(int(high + low, 16))]
}
#: The normal form of each octet that is not escaped: printable ones are kept.
_OCTETS: Final = [chr(octet) if 0x20 < octet < 0x7F else f"%{octet:02X}" for octet in range(256)]
#: Stands for the end of a path, so that a `$` is a character like others; never in a path, since it would be escaped.
_END: Final = "\0"
#: The work that a check may cost; a unit is about an eighth of a nanosecond. Beyond it the answer is no, since we
#: cannot know. A path of 60 characters meets a thousand rules before that, all with a `*` and the same beginning.
_MAX_WORK: Final = 4_000_000
#: The most rules for us; beyond them nothing may be fetched. So many fit into 500 KiB only if their lines are shorter
#: than 26 characters; the longest lists in use have a few thousand.
_MAX_RULES: Final = 20_000
#: Approximate bytes of a rule, in addition to its characters.
_RULE_BYTES: Final = 150
_PATH: Final = re.compile(r"https?://[^/?]*")


def token_of(user_agent: str) -> str:
    """The product token to which sites address rules: `align-ingest` of `align-ingest/0.1 (+https://...)`."""
    match = _TOKEN.match(user_agent)
    return match[0].lower() if match else "*"


class Rules:
    """What a robots.txt says to us.

    Rules are sorted by their text before the first `*`, which the path must begin with. So a rule without `*`, as most
    are, is found by its text; other rules are tried only if their beginning fits.

    Args:
        rules: `+` or `-` and a pattern in normal form, each once.
        reserving: rules that keep pictures from training only, each with the reason.

    Attributes:
        num_bytes: memory, approximately.
    """

    __slots__ = ("_lengths", "_reserving", "_rests", "num_bytes")

    def __init__(self, rules: Iterable[str], reserving: Sequence[tuple[str, Rules]] = ()) -> None:
        rests: dict[str, tuple[str, ...]] = {}
        several: dict[str, list[str]] = {}
        self._reserving = reserving
        self.num_bytes: int = sum(others.num_bytes for _, others in reserving)
        for rule in rules:
            self.num_bytes += len(rule) + _RULE_BYTES
            sign = rule[0]
            pattern = rule[1:-1] + _END if rule[-1] == "$" else rule[1:]
            beginning, star, rest = pattern.partition("*")
            if star or beginning in rests:
                several.setdefault(beginning, []).append(sign + star + rest)
            else:
                rests[beginning] = _ALONE[sign]
        for beginning, others in several.items():
            others += rests.get(beginning, ())
            # the longest first, then permissions
            rests[beginning] = tuple(sorted(others, key=lambda rest: (-len(rest), rest)))
        self._rests = rests
        self._lengths = sorted(set(map(len, rests)))

    def refusal(self, url: str) -> str | None:
        """Why the URL may not be fetched, or not for training; None: it may be."""
        if not self.permit(url):
            return "robots.txt: disallows it"
        work = _MAX_WORK // max(1, len(self._reserving))
        return next((reason for reason, rules in self._reserving if not rules.permit(url, work)), None)

    def permit(self, url: str, max_work: int = _MAX_WORK) -> bool:
        """Whether the URL may be fetched: the longest match decides, permission among equals; without one it may be."""
        path = _normal(_PATH.sub("", url, count=1)) + _END
        best, work = (0, True), 0
        for length in self._lengths:
            if length > len(path):
                break
            for rest in self._rests.get(path[:length], ()):
                found = length + len(rest), rest[0] == "+"
                if found <= best:
                    break
                if len(rest) > 1:
                    fits = len(rest) <= 2 * len(path) + 2  # every other character of it may be a `*`
                    work += (8 + fits * len(rest)) * (len(path) + 128)
                    if work > max_work:
                        return False
                    if not fits or not _in_order(rest[2:].split("*"), path, length):
                        continue
                best = found
                break
        return best[1]


_BEGINNINGS: Final = frozenset("/*")
_ALONE: Final = {"+": ("+",), "-": ("-",)}
_PERMITS_ALL: Final = Rules(())
_FORBIDDEN: Final = frozenset({"-/"})
_FORBIDS_ALL: Final = Rules(_FORBIDDEN)


def _in_order(parts: list[str], path: str, start: int) -> bool:
    """Whether the parts follow one another in the path. It suffices to try the first place of each."""
    for part in parts:
        place = path.find(part, start)
        if place < 0:
            return False
        start = place + len(part)
    return True


def rules_for(token: str, data: bytes, training_robots: Sequence[str] = ()) -> Rules:
    """The rules of a robots.txt for the robot `token`, else those for `*`.

    What it forbids to one of `training_robots` by name is kept from training.
    """
    if len(data) >= MAX_BYTES:  # what is cut off takes the rest of its line with it: half a rule is another rule
        data = data[:MAX_BYTES].replace(b"\r", b"\n").rpartition(b"\n")[0]
    text = data.replace(b"\r", b"\n").decode("utf-8-sig", errors="replace")
    wanted = {"*", token, *training_robots}
    groups: dict[str, tuple[set[str], ...]] = {}  # by robot: what it may fetch; what USAGE_FIELDS say
    named: dict[str, tuple[set[str], ...]] = {}
    ended = True
    for agent, allow, usage, signal, value in _LINES.findall(text):
        if agent:
            if ended:
                named, ended = {}, False
            value = value.lstrip()
            name = "*" if value[:1] == "*" else token_of(value) if _TOKEN.match(value) else ""
            if name in wanted:
                named[name] = groups.setdefault(name, (set(), set(), set()))
        else:
            ended = True
            pattern, permits = value.strip() if named else "", bool(allow)
            if pattern and (usage or signal):
                path, _, said = _WHITE.sub(" ", pattern).partition(" ") if pattern[0] == "/" else ("/", "", pattern)
                permits, pattern = (found := _permits_training(said)) is True, "" if found is None else path
            if pattern[:1] in _BEGINNINGS:
                pattern = _normal(pattern)
                if "**" in pattern:
                    pattern = _STARS.sub("*", pattern)
                for group in named.values():
                    rules = group[1 if usage else 2 if signal else 0]
                    if len(rules) <= _MAX_RULES:
                        rules.add(("+" if permits else "-") + pattern)
    ours = groups.get(token, groups.get("*"))
    found_for: dict[frozenset[str], str] = {}  # rules -> the reason; many robots have the same
    for field, rules in zip(USAGE_FIELDS, ours[1:] if ours else (), strict=False):
        strict = frozenset(rule for rule in rules if rule[0] == "-" or "-" + rule[1:] not in rules)
        found_for.setdefault(strict, f"{field}: in robots.txt")
    for robot in training_robots:
        if robot in groups:
            found_for.setdefault(frozenset(groups[robot][0]), f"{TRAINING_ROBOTS}: robots.txt disallows {robot}")
    reserving = [(reason, _rules(some)) for some, reason in found_for.items() if any(rule[0] == "-" for rule in some)]
    return _rules(ours[0] if ours else (), reserving)


def _rules(rules: Collection[str], reserving: Sequence[tuple[str, Rules]] = ()) -> Rules:
    if len(rules) > _MAX_RULES or (not reserving and rules == _FORBIDDEN):
        return _FORBIDS_ALL
    return Rules(rules, reserving) if rules or reserving else _PERMITS_ALL


def _permits_training(said: str) -> bool | None:
    """Whether a preference permits training: the last word about it counts, and what is unknown is a no.

    None: it says nothing about training.
    """
    found = None
    for part in said.split(","):
        key, _, value = part.partition(";")[0].partition("=")
        if permission := _TRAINING.get(key.strip().lower()):
            found = value.strip() == permission
    return found


def usage_opt_out(values_of: Callable[[str], Iterable[str]]) -> str | None:
    """The one of USAGE_FIELDS that forbids training in a response, whose headers are given by name; or None."""
    return next((field for field in USAGE_FIELDS if _permits_training(",".join(values_of(field))) is False), None)


def _normal(text: str) -> str:
    """Makes equal addresses equal texts: escapes what must be escaped, in capitals, and nothing else."""
    if "%" in text:
        first, *others = text.split("%")
        text = first + "".join([_ESCAPED.get(part[:2], "%" + part[:2]) + part[2:] for part in others])
    if " " in text or not (text.isascii() and text.isprintable()):
        text = "".join(map(_OCTETS.__getitem__, text.encode("utf-8", "replace")))
    return text


def opt_out(values: list[str], token: str, directives: frozenset[str] = _OPT_OUTS) -> str | None:
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
            if directive in directives and robot in (None, "*", token):
                return directive
    return None
