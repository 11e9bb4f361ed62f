"""What a person says of a promotion on the command line, and whether it still counts."""

import argparse

import pytest

from align.arguments import commands
from align.errors import ConfigError, GateError
from align.release.promotion.approval import Approval, approval_of
from align.services.tracking.registry import Version


def said(*words: str) -> Approval | None:
    parser = argparse.ArgumentParser()
    commands.promote(parser)
    return approval_of(parser.parse_args(words))


def test_words_become_one_line_without_logins() -> None:
    assert said() is None
    assert said("--approved-by", " Ann \n", "--because", "see\thttps://me:secret@host/ \x1b[2J") == Approval(
        "Ann", "see https://host/ \\u001b[2J"
    )
    rejected = said("--rejected-by=Bob", "--because=-x", "--if-candidate=3", "--if-champion=0")
    assert rejected == Approval("Bob", "-x", is_rejection=True, candidate=3, champion=0)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--approved-by", "Ann"], "--approved-by: say why, too: --because WHY"),
        (["--because", "better"], "--because: say who, too: --approved-by WHO, or --rejected-by WHO"),
        (["--rejected-by", " ", "--because", "x"], "--rejected-by: expected words, not an empty text"),
        (["--approved-by", "Ann", "--because", "x" * 1001], "--because: 1,001 characters; at most 1,000 are kept"),
    ],
)
def test_who_and_why_go_together(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^{problem}"):
        said(*words)


def test_the_longest_words_are_kept_whole() -> None:
    assert said("--approved-by", "a" * 200, "--because", "x" * 1000) == Approval("a" * 200, "x" * 1000)


@pytest.mark.parametrize(
    ("candidate", "champion", "problem"),
    [
        (None, None, None),
        (3, 1, None),
        (3, 2, "the champion was version 2 when the promotion was judged, and now is version 1"),
        (3, 0, "the champion was none when the promotion was judged, and now is version 1"),
        (2, 1, "version 2 is not promoted: it was the candidate when the promotion was judged, and now version 3 is"),
    ],
)
def test_an_approval_counts_for_what_was_judged(
    candidate: int | None, champion: int | None, problem: str | None
) -> None:
    approval = Approval("Ann", "better", candidate=candidate, champion=champion)
    versions = [Version("m", number, "run", {}) for number in (3, 1)]
    if problem is None:
        approval.require_judged(*versions, {"candidate": 3, "champion": 1})
        return
    with pytest.raises(GateError, match=problem):
        approval.require_judged(*versions, {"candidate": 3, "champion": 1})
