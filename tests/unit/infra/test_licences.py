"""infra/licences.py: what may be in the lock, and the page that says so."""

import re

import pytest

from infra import licences


def test_the_page_is_that_of_the_lock() -> None:
    found = licences.licences()
    assert [line for name, text in found.items() if (line := licences.problem(name, text))] == []
    assert licences.PAGE.read_text("utf-8") == licences.page(found), "run `make licences`"


def test_every_exception_is_in_use() -> None:
    found = licences.licences()
    for name in licences.ACCEPTED:
        assert name in found and not licences.is_permissive(found[name] or ""), f"{name} needs no exception"
    assert set(licences.BY_HAND) <= set(found)


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("Apache-2.0 AND MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", False),
        ("AGPL-3.0-only", False),
        ("SSPL-1.0", False),
        ("GPL-2.0-only WITH GCC-exception-2.0", False),
    ],
)
def test_one_permissive_alternative_is_enough(expression: str, permissive: bool) -> None:
    assert licences.is_permissive(expression) is permissive


def test_what_is_not_permissive_or_not_known_is_refused() -> None:
    assert "not permissive" in (licences.problem("nudenet", "AGPL-3.0-only") or "")
    assert "no licence" in (licences.problem("mystery", None) or "")


def test_everything_locked_has_a_hash_and_no_address() -> None:
    for lock in (licences.LOCK, *sorted((licences.ROOT / "infra/locks").glob("*.txt"))):
        text = lock.read_text("utf-8")
        for line in text.splitlines():
            assert re.fullmatch(r"#.*|[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
