"""The downloader's parts that need no server: addresses, errors, hosts, the schedule."""

import string
import time
from email.utils import formatdate

import pycurl
import pytest
from pydantic import ValidationError

from align.config.ingest import DownloadConfig
from align.ingest import robots
from align.ingest.download.hosts import Ask, Host, Job, Schedule
from align.ingest.robots import MAX_BYTES, rules_for
from align.web.addresses import address_policy, target_of
from align.web.failure import Failure, of_curl, of_status
from tests.support.params import load_params


@pytest.mark.parametrize(
    ("url", "requested", "host"),
    [
        ("http://Example.COM", "http://example.com/", "example.com"),
        ("  HTTPS://example.com:443/a b.jpg#top\n", "https://example.com/a%20b.jpg", "example.com"),
        ("http://example.com:443/x?", "http://example.com:443/x", "example.com:443"),
        ("http://user:pw@example.com/x?a=1&b=%20", "http://example.com/x?a=1&b=%20", "example.com"),
        (
            "http://bücher.example/ü.jpg?q=ß",
            "http://xn--bcher-kva.example/%C3%BC.jpg?q=%C3%9F",
            "xn--bcher-kva.example",
        ),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/x", "[2001:db8::1]:8080"),
        ("http://a_b.example/%zz/%41", "http://a_b.example/%zz/%41", "a_b.example"),
        ("http://example.com?q", "http://example.com/?q", "example.com"),
        ("http://exam\nple.com/\tx", "http://example.com/x", "example.com"),
    ],
)
def test_urls_get_a_normal_form(url, requested, host):
    target = target_of(url)
    assert (target.url, target.host) == (requested, host)
    assert target.url.startswith(target.origin + "/") and target_of(target.url) == target


@pytest.mark.parametrize(
    "url",
    ["", "x", "//a/x", "ftp://a/x", "file:///etc/passwd", "http:///x", "http://:80/", "http://a b/", "http://a:x/",
     "http://a:65536/", "http://[::1/", "http://[fe80::1%25eth0]/", "http://" + "ü" * 70 + ".de/", "data:image/png,x",
     "http://a/" + "x" * 16_400, "http://" + "a.\u200b" * 500 + "de/"],
)  # fmt: skip
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError):
        target_of(url)


_REFUSED = """
    0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.0 127.255.255.255 169.254.0.0
    169.254.169.254 172.16.0.0 172.31.255.255 192.0.0.1 192.0.2.1 192.168.0.0 192.168.255.255 198.18.0.1 198.51.100.1
    203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.255
    :: ::1 ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:192.168.0.1 64:ff9b::10.0.0.1 64:ff9b:1::1 100::1
    2001:db8::1 2002:7f00:1:: 2002:c0a8:101::1 fc00::1 fd12::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2
"""
_ALLOWED = """
    1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 223.255.255.255
    2606:4700::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2a00::1
"""


def test_addresses_inside_and_outside():
    may_connect = address_policy([])
    assert [address for address in _REFUSED.split() if may_connect(address, 80)] == []
    assert [address for address in _ALLOWED.split() if not may_connect(address, 80)] == []


def test_networks_that_are_allowed():
    may_connect = address_policy(["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd12::1"):
        assert may_connect(address, 80), address
    for address in ("10.0.255.255", "10.2.0.0", "::ffff:10.2.0.0", "fc00::1", "127.0.0.1"):
        assert not may_connect(address, 80), address


def test_networks_are_checked_when_the_section_is_read():
    values = load_params().values["download"]
    for network in ("10.0.0.1/8", "nonsense", "10.0.0.0/33"):
        with pytest.raises(ValidationError, match="allow_networks"):
            DownloadConfig.model_validate({**values, "allow_networks": [network]})
    assert DownloadConfig.model_validate({**values, "allow_networks": ["10.0.0.0/8"]})


@pytest.mark.parametrize(
    ("user_agent", "token"), [("align-ingest/0.1 (+https://a)", "align-ingest"), ("My_Bot", "my_bot"), ("/1.0", "*")]
)
def test_the_token_of_a_user_agent(user_agent, token):
    assert robots.token_of(user_agent) == token


def test_retry_after_in_seconds_and_as_a_date():
    now = 1_700_000_000.0
    waits = {
        "0": 0.0, " 120 ": 120.0, formatdate(now + 60, usegmt=True): 60.0, formatdate(now - 60, usegmt=True): 0.0,
        "-1": None, "soon": None, "": None, "1" * 40: 111_111_111_111.0, "Fri, 99 Nov 2023 00:00:00 GMT": None,
    }  # fmt: skip
    for text, wait_s in waits.items():
        assert of_status(429, text, now).retry_after_s == wait_s, text
    assert of_status(404, "120", now).retry_after_s is None


def test_which_statuses_may_pass():
    passing = [status for status in range(204, 600) if of_status(status, None, 0.0).retryable]
    assert passing == [408, 425, 429, 500, 502, 503, 504, *range(506, 600)]
    assert [status for status in passing if of_status(status, None, 0.0).busy] == [429, 503]


def test_which_of_libcurls_errors_may_pass():
    def failure(code, message="words", *, answered=False):
        failure = of_curl(code, message, 0, num_bytes=7, answered=answered)
        return failure.code, failure.retryable

    assert failure(pycurl.E_COULDNT_RESOLVE_HOST) == ("DNS failure", True)
    assert failure(pycurl.E_COULDNT_CONNECT) == ("cannot connect", True)
    assert failure(pycurl.E_PEER_FAILED_VERIFICATION) == ("TLS", False)
    assert failure(pycurl.E_SSL_CONNECT_ERROR) == ("TLS", True)
    assert failure(pycurl.E_GOT_NOTHING) == ("connection lost", True)
    assert failure(pycurl.E_PARTIAL_FILE, answered=True) == ("truncated", True)
    assert failure(pycurl.E_UNSUPPORTED_PROTOCOL, "Received HTTP/0.9 when not allowed") == ("not HTTP", False)
    assert failure(pycurl.E_URL_MALFORMAT) == ("invalid URL", False)


def job(url):
    target = target_of(url)
    return Job(Ask(url, url), target, target)


def schedule(**changes):
    return Schedule(**{"max_per_host": 8, "rate_per_host": None, "obey_robots": False} | changes)


def taken(of, now):
    urls = []
    while (following := of.next(now)) is not None:
        of.started(following[1], now)
        urls.append(following[0].ask.url)
    return urls


def test_hosts_take_turns_within_their_limits():
    waiting = schedule(max_per_host=2)
    for name in "aaaabbc":
        waiting.add(job(f"http://{name}/"))
    assert taken(waiting, 0.0) == [f"http://{name}/" for name in "abcab"]
    assert taken(waiting, 9.0) == []  # until one of a's is done


def test_a_rate_spaces_what_a_host_is_asked():
    waiting = schedule(rate_per_host=2.0)
    for _ in range(3):
        waiting.add(job("http://a/"))
    assert [len(taken(waiting, now)) for now in (0.0, 0.4, 0.5, 0.9, 1.0, 5.0)] == [1, 0, 1, 0, 1, 0]
    assert waiting.wait_s(5.0, at_most=7.0) == 7.0


def test_robots_txt_comes_first_and_once():
    waiting = schedule(obey_robots=True)
    for _ in range(3):
        waiting.add(job("http://a/x"))
    first = waiting.next(0.0)
    assert first is not None and first[0].target.url == "http://a/robots.txt" and first[0].robots_of is first[1]
    assert waiting.next(0.0) is None
    first[1].asks_robots = False
    assert waiting.hosts.keep_rules(first[1], robots.rules_for("bot", b""), until_s=10.0)
    waiting.offer(first[1])
    following = waiting.next(1.0)
    assert following is not None and following[0].ask.url == "http://a/x"
    late = waiting.next(10.0)
    assert late is not None and late[0].robots_of is first[1]


def test_a_host_is_given_up_after_failures_in_a_row_and_tried_again_later():
    host, why = Host(target_of("http://a/"), 8), Failure("timed out: no answer", retryable=True)

    def fail(now):
        host.failed(why, now, wait_s=1.0, longest_wait_s=100.0, max_failures=3)
        return host.is_closed(now)

    assert [fail(0.0), fail(0.0)] == [False, False]
    host.succeeded()
    assert [fail(1.0), fail(1.0), fail(1.0)] == [False, False, True]
    assert host.is_closed(100.9) and not host.is_closed(101.0)
    assert fail(101.0)  # one is enough now


def test_a_busy_host_gets_half_as_much_at_a_time():
    host = Host(target_of("http://a/"), 8)
    for expected in (4, 2, 1, 1):
        host.failed(Failure("HTTP 429", True, 5.0, busy=True), 10.0, wait_s=5.0, longest_wait_s=5.0, max_failures=99)
        assert (host.max_active, host.free_at_s, host.is_closed(10.0)) == (expected, 15.0, False)
    host.succeeded()
    assert host.max_active == 2
    host.failed(Failure("HTTP 429", True, 5.1, busy=True), 20.0, wait_s=5.1, longest_wait_s=5.0, max_failures=99)
    assert host.is_closed(25.0) and not host.is_closed(25.2)


def allows(text, path, token="bot"):
    return rules_for(token, text.encode()).permit(f"http://a{path}")


def test_an_empty_robots_txt_forbids_nothing():
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
def test_patterns_of_robots_txt(pattern, matching, others):
    text = f"User-agent: *\nDisallow: {pattern}"
    assert [path for path in matching.split() if allows(text, path)] == []
    assert [path for path in others.split() if not allows(text, path)] == []


def test_the_longest_rule_decides_and_permission_among_equals():
    assert allows("User-agent: *\nDisallow: /p\nAllow: /page", "/page")
    assert allows("User-agent: *\nDisallow: /folder\nAllow: /folder", "/folder/page")
    assert not allows("User-agent: *\nAllow: /page\nDisallow: /*.htm", "/page.htm")
    assert allows("User-agent: *\nAllow: /$\nDisallow: /", "/")
    assert not allows("User-agent: *\nAllow: /$\nDisallow: /", "/page.htm")


def test_the_group_for_us():
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


#: The example of draft-ietf-aipref-attach, and one of Cloudflare's managed files.
USAGE = """
User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""
SIGNAL = "User-agent: *\nContent-Signal: search=yes,ai-train=no,use=full\nAllow: /\nUser-agent: GPTBot\nDisallow: /"


def refused(text, path="/x", token="bot", robots=()):
    refusal = rules_for(token, text.encode(), robots).refusal(f"http://a{path}")
    return refusal and refusal.partition(":")[0]


def test_what_robots_txt_says_of_training():
    assert [refused(USAGE, path) for path in ("/test", "/never/test", "/ai-ok/test")] == [
        "Content-Usage", "robots.txt", None,
    ]  # fmt: skip
    assert refused(USAGE, token="examplebot") is None
    assert refused(SIGNAL) == "Content-Signal"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("Content-Signal: search=yes", None),
        ("Content-Signal: ai-train=yes, search=no", None),
        ("content-signal : /x  AI-Train = no # why", "Content-Signal"),
        ("Content-Signal: ai-train=perhaps", "Content-Signal"),
        ("Content-Usage: /y train-ai=n", None),
        ("Content-Usage: /x\ttrain-ai=n", "Content-Usage"),
        ("Content-Usage: train-ai=y;until=2030", None),
        ("Content-Usage: train-ai=Y", "Content-Usage"),
        ("Content-Usage: train-ai", "Content-Usage"),
        ("Content-Usage: train-ai;allow=y", "Content-Usage"),
        ("Content-Usage: train-ai=n, train-ai=y", None),  # of a structured field the last one counts
        ("Content-Usage: train-ai=y\nContent-Usage: train-ai=n\nContent-Usage: train-ai=y", "Content-Usage"),
        ("Content-Usage: other-ai=n", None),
        ("Content-Usage:", None),
        ("Content-Usage: train-ai=n\nContent-Usage: /x search=n", "Content-Usage"),
        ("Content-Usage: train-ai=n\nContent-Usage: /x train-ai=y\nDisallow: /x", "robots.txt"),
    ],
)
def test_preferences_about_training(rules, reason):
    assert refused(f"User-agent: *\n{rules}") == reason
    assert refused(f"User-agent: other\n{rules}") is None


def test_what_is_forbidden_to_robots_that_train():
    text = "User-agent: CCBot\nUser-agent: GPTBot/1.2\nDisallow: /x\nAllow: /x/open\n\nUser-agent: *\nAllow: /"
    named = rules_for("bot", text.encode(), ("gptbot", "ccbot"))
    assert named.refusal("http://a/x") == "training robots: robots.txt disallows gptbot"
    assert (named.refusal("http://a/x/open"), named.refusal("http://a/y")) == (None, None)
    assert refused(text) is None and refused(text, robots=("claudebot",)) is None
    assert refused("User-agent: *\nDisallow: /x\nUser-agent: bot\nAllow: /", robots=("ccbot",)) is None


def test_lines_end_as_they_do_anywhere():
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["\ufeff user-agent : bot", "", "  DISALLOW\t: /x # why", "allow: /x/y"])
        assert [allows(text, path) for path in ("/x", "/x/y", "/y")] == [False, True, True]


def test_what_is_cut_off_takes_the_rest_of_its_line_with_it():
    """Half a permission permits more."""
    text = b"User-agent: *\nDisallow: /\n"
    text += b"#" * (MAX_BYTES - len(text) - len(b"\nAllow: /a")) + b"\nAllow: /a"
    assert len(text) == MAX_BYTES
    assert not rules_for("bot", text + b"b/c").permit("http://a/a")
    assert not rules_for("bot", text).permit("http://a/a")
    assert rules_for("bot", b"User-agent: *\nAllow: /a\nDisallow: /").permit("http://a/a")


def test_a_list_of_tens_of_thousands_of_rules_forbids_everything_if_it_is_for_us():
    many = "\n".join(f"Disallow: /{i}" for i in range(20_001))
    assert not allows(f"User-agent: *\n{many}", "/x")
    assert allows(f"User-agent: *\n{many}\nUser-agent: bot\nDisallow: /y", "/x")
    assert allows(f"User-agent: *\n{many.rpartition(chr(10))[0]}", "/x")


def digits(number):
    """Short, and different for each number."""
    letters = string.ascii_letters + string.digits
    text = ""
    while number or not text:
        number, digit = divmod(number, len(letters))
        text += letters[digit]
    return text


#: Lines by number, and what a file of 500 KiB of them says about any path.
HOSTILE = {
    "spaces": (lambda i: "Allow" + " " * 10_000, True),
    "the same rule": (lambda i: "Allow:/", True),
    "rules in one another": (lambda i: "Disallow:/" + "b" * i, None),
    "wildcards": (lambda i: "Allow:/*" + digits(i), False),
    "wildcards in one another": (lambda i: "Allow:/" + "a" * i + "*b", None),
    "many wildcards": (lambda i: "Allow:/" + "*a" * 20 + "b" + digits(i), None),
    "one rule": (lambda i: "Disallow:/" + "*a" * 249_000 + "b" if not i else "", True),
    "needles": (lambda i: "Allow:/*" + "a" * 45 + "b" + "a" * 45 + digits(i), None),
    "other letters": (lambda i: "Allow:/" + "\u30c4a" * 1000 + digits(i), True),
    "groups": (lambda i: "User-agent:" + digits(i), True),
    "groups for us": (lambda i: "User-agent:bot\nUser-agent:*\nAllow:/" + digits(i), True),
    "one name again and again": (lambda i: "User-agent:*" if i < 18_000 else "Allow:/" + digits(i), None),
    "preferences": (lambda i: "Content-Usage:/*" + digits(i) + " train-ai=n", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_half_a_megabyte_of_anything_costs_little(name):
    """Milliseconds to read, one at most to answer; ten times as much for a busy machine."""
    line, answer = HOSTILE[name]
    lines, size, number = ["User-agent: *"], 14, 0
    while size < MAX_BYTES - 500:
        lines.append(line(number)[: MAX_BYTES - size - 100])
        size += len(lines[-1].encode()) + 1
        number += 1
    data = "\n".join(lines).encode()[: MAX_BYTES - 1]
    spent_s = []
    for _ in range(3):
        start = time.process_time()
        rules = rules_for("bot", data)
        spent_s.append(time.process_time() - start)
    read_s = min(spent_s)  # one that the collector of garbage did not fall into
    assert read_s < 0.5
    urls = [
        f"http://a/{path}" for path in ("x" * 60, "a" * 100, "a" * 2000, "a" * 16_000, "%41a" * 4000, "bcd/" * 4000)
    ]
    for url in urls:
        start = time.process_time()
        answers = {rules.permit(url) for _ in range(10)}
        assert (time.process_time() - start) / 10 < 0.015, url[:40]
        assert answers == {answer} or (answer is None and len(answers) == 1)
