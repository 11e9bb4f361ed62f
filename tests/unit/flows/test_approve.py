"""What a person sees of a promotion, and what becomes of what they type."""

from pathlib import Path

import pytest

from flows.approve import Answer, Judged, _arguments, decision_page

JUDGED = Judged(version=3, champion=1, hours=72.0)
APPROVED = ("--version=3", "--if-champion=1", "--approved-by=Ann")


@pytest.mark.parametrize(
    ("judged", "given", "words"),
    [
        (JUDGED, {}, (*APPROVED, "--because=better")),
        (
            JUDGED.model_copy(update={"is_candidate": True, "champion": 0}), {},
            ("--if-candidate=3", "--if-champion=0", "--approved-by=Ann", "--because=better"),
        ),
        (JUDGED, {"decision": "reject"}, ("--version=3", "--rejected-by=Ann", "--because=better")),
        (
            JUDGED, {"who": "--check", "why": "a\0b\x1b[2J\nsee https://me:secret@host/"},
            ("--version=3", "--if-champion=1", "--approved-by=--check",
             r"--because=a\u0000b\u001b[2J\nsee https://host/"),
        ),
        (JUDGED, {"why": "\0" * 1000}, (*APPROVED, f"--because={(chr(92) + 'u0000') * 166}" + r"\u00")),
    ],
)  # fmt: skip
def test_what_people_type_is_words_and_nothing_else(
    judged: Judged, given: dict[str, str], words: tuple[str, ...]
) -> None:
    answer = Answer.model_validate({"decision": "approve", "who": "Ann", "why": "better"} | given)
    assert _arguments(judged, answer) == words


def test_the_page_is_the_one_that_promote_wrote(tmp_path: Path) -> None:
    decision = {"outcome": "refused", "reason": "worse\x1b[2J", "candidate": 3, "champion": None}
    assert decision_page(decision) == ("**refused**: version 3; the champion: none\n\n```\nworse\\u001b[2J\n```")
    (tmp_path / "promotion.md").write_text("| gate |")
    assert decision_page(decision | {"page": f"{tmp_path}/promotion.html"}) == "| gate |"
    assert "version 3" in decision_page(decision | {"page": f"{tmp_path}/gone/promotion.html"})
