"""robots.txt: what it means, and that hostile ones cost little."""

from __future__ import annotations

import string
import time
from collections.abc import Callable

import pytest

from align.ingest.download.robots import MAX_BYTES, rules_for


def allows(text: str, path: str, token: str = "bot") -> bool:
    return rules_for(token, text.encode()).permit(f"http://a{path}")


def test_an_empty_robots_txt_forbids_nothing() -> None:
    for text in ("", "\n", "Disallow: /", "User-agent: *\nDisallow:", "<html>no</html>", "User-agent: *\nDisallow: x"):
        assert allows(text, "/x"), text
    assert not allows("User-agent: *\nDisallow: /", "/x")


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [  # the examples of RFC 9309 and of Google's documentation
        ("/", "/ /x /x?y", ""),
        ("/fish", "/fish /fish.html /fish/salmon.html /fishheads /fish?id=1", "/Fish.asp /catfish /desert/fish"),
        ("/fish*", "/fish /fishheads/yummy.html", "/Fish.asp /catfish"),
        ("/fish/", "/fish/ /fish/?id=x /fish/salmon.htm", "/fish /fish.html /Fish/Salmon.asp"),
        ("/*.php", "/index.php /f/file.php?p /f/any.php.file.html", "/ /windows.PHP"),
        ("/*.php$", "/x.php /f/x.php", "/x.php?p /x.php/ /x.php5 /windows.PHP"),
        ("/fish*.php", "/fish.php /fishheads/catfish.php?p", "/Fish.PHP"),
        ("/$", "/", "/x"),
        ("*/x$", "/x /a/x", "/xa"),
        ("/a*b*b$", "/abb /axbxb /abbb", "/ab /abbc"),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https://foo.bar", "/foo/bar"),
        ("/foo/%62%61%7A", "/foo/baz", "/foo/BAZ"),
        ("/foo/ツ", "/foo/%E3%83%84 /foo/%e3%83%84x", "/foo/"),
        ("/a%3cd", "/a%3Cd /a%3cd", "/acd"),
        ("/%7Ea%zz%4", "/~a%zz%4 /%7ea%zz%4", "/a"),
        ("/a**b", "/ab /axb", "/a"),
        ("/a b\x7f", "/a%20b%7F", "/a"),
    ],
)
def test_patterns_of_robots_txt(pattern: str, matching: str, others: str) -> None:
    text = f"User-agent: *\nDisallow: {pattern}"
    assert [path for path in matching.split() if allows(text, path)] == []
    assert [path for path in others.split() if not allows(text, path)] == []


def test_the_longest_rule_decides_and_permission_among_equals() -> None:
    assert allows("User-agent: *\nDisallow: /p\nAllow: /page", "/page")
    assert allows("User-agent: *\nDisallow: /folder\nAllow: /folder", "/folder/page")
    assert not allows("User-agent: *\nAllow: /page\nDisallow: /*.htm", "/page.htm")
    assert allows("User-agent: *\nAllow: /$\nDisallow: /", "/")
    assert not allows("User-agent: *\nAllow: /$\nDisallow: /", "/page.htm")


def test_the_group_for_us() -> None:
    text = """
Disallow: /nobody
USER-AGENT : Bot/2.1 # with a version
Sitemap: http://a/map
User-agent: other
Disalow: /both
User-agent: *
Disallow: /all
user agent: bot

Allow: /all/of
Disallow: /ours
"""
    for path, bot, other, third in (
        ("/nobody", True, True, True), ("/both", False, False, True), ("/ours", False, True, True),
        ("/all", True, True, False), ("/all/of", True, True, False),
    ):  # fmt: skip
        assert [allows(text, path, token) for token in ("bot", "other", "third")] == [bot, other, third], path


def test_lines_end_as_they_do_anywhere() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["\ufeff user-agent : bot", "", "  DISALLOW\t: /x # why", "allow: /x/y"])
        assert [allows(text, path) for path in ("/x", "/x/y", "/y")] == [False, True, True]


def test_what_is_cut_off_takes_the_rest_of_its_line_with_it() -> None:
    """Half a permission permits more."""
    text = b"User-agent: *\nDisallow: /\n"
    text += b"#" * (MAX_BYTES - len(text) - len(b"\nAllow: /a")) + b"\nAllow: /a"
    assert len(text) == MAX_BYTES
    assert not rules_for("bot", text + b"b/c").permit("http://a/a")
    assert not rules_for("bot", text).permit("http://a/a")
    assert rules_for("bot", b"User-agent: *\nAllow: /a\nDisallow: /").permit("http://a/a")


def test_a_list_of_tens_of_thousands_of_rules_forbids_everything_if_it_is_for_us() -> None:
    many = "\n".join(f"Disallow: /{i}" for i in range(20_001))
    assert not allows(f"User-agent: *\n{many}", "/x")
    assert allows(f"User-agent: *\n{many}\nUser-agent: bot\nDisallow: /y", "/x")
    assert allows(f"User-agent: *\n{many.rpartition(chr(10))[0]}", "/x")


def digits(number: int) -> str:
    """Short, and different for each number."""
    letters = string.ascii_letters + string.digits
    text = ""
    while number or not text:
        number, digit = divmod(number, len(letters))
        text += letters[digit]
    return text


#: Lines by number, and what a file of 500 KiB of them says about any path.
HOSTILE: dict[str, tuple[Callable[[int], str], bool | None]] = {
    "one character": (lambda i: "a", True),
    "nothing": (lambda i: "", True),
    "spaces": (lambda i: "Allow" + " " * 10_000, True),
    "the same rule": (lambda i: "Allow:/", True),
    "short rules": (lambda i: "Allow:/" + digits(i), False),
    "rules in one another": (lambda i: "Disallow:/" + "b" * i, None),
    "wildcards": (lambda i: "Allow:/*" + digits(i), False),
    "wildcards in one another": (lambda i: "Allow:/" + "a" * i + "*b", None),
    "many wildcards": (lambda i: "Allow:/" + "*a" * 20 + "b" + digits(i), None),
    "one rule": (lambda i: "Disallow:/" + "*a" * 249_000 + "b" if not i else "", True),
    "stars": (lambda i: "Allow:/" + "*" * 100_000, True),
    "needles": (lambda i: "Allow:/*" + "a" * 45 + "b" + "a" * 45 + digits(i), None),
    "other letters": (lambda i: "Allow:/" + "\u30c4a" * 1000 + digits(i), True),
    "escapes": (lambda i: "Allow:/" + "%41a" * 1000 + digits(i), True),
    "groups": (lambda i: "User-agent:" + digits(i), True),
    "groups for us": (lambda i: "User-agent:bot\nUser-agent:*\nAllow:/" + digits(i), True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_half_a_megabyte_of_anything_costs_little(name: str) -> None:
    """Milliseconds to read, one at most to answer; ten times as much for a busy machine."""
    line, answer = HOSTILE[name]
    lines, size, number = ["User-agent: *"], 14, 0
    while size < MAX_BYTES - 500:
        lines.append(line(number)[: MAX_BYTES - size - 100])
        size += len(lines[-1].encode()) + 1
        number += 1
    data = "\n".join(lines).encode()[: MAX_BYTES - 1]
    start = time.process_time()
    rules = rules_for("bot", data)
    read_s = time.process_time() - start
    assert read_s < 0.5
    urls = [
        f"http://a/{path}" for path in ("x" * 60, "a" * 100, "a" * 2000, "a" * 16_000, "%41a" * 4000, "bcd/" * 4000)
    ]
    for url in urls:
        start = time.process_time()
        answers = {rules.permit(url) for _ in range(10)}
        assert (time.process_time() - start) / 10 < 0.015, url[:40]
        assert answers == {answer} or (answer is None and len(answers) == 1)
    print(f"{name}: read in {read_s * 1000:.0f} ms")
