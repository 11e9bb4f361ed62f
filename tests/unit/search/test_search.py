from pathlib import Path

import pytest

from align.display.figure import png
from align.errors import ConfigError, DataError
from align.formats.image_index import Hit, ImageIndex
from align.search.answers import AnsweredQuery, ImageAnswer
from align.search.report import search_figure
from align.search.search import Query, open_index, search
from tests.support import colour_index
from tests.support.colours import ColourEncoder, square


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    root = tmp_path_factory.mktemp("search")
    colour_index.build(root)
    return open_index(root / "index", "mine")


def ask(images: ImageIndex, query: Query, k: int = 3) -> list[Hit]:
    return search(query, index=images, encoder=ColourEncoder(), text_weight=2.0, num_results=k)


def colours(hits: list[Hit]) -> set[str]:
    return {hit.item.texts[0].split()[1] for hit in hits}


def test_by_text_and_by_image(images: ImageIndex) -> None:
    assert colours(ask(images, Query(text="blue"))) == {"blue"}
    assert colours(ask(images, Query(image=square("green")))) == {"green"}
    hits = ask(images, Query(text="blue"), k=12)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_an_indexed_image_is_no_answer_to_itself(images: ImageIndex) -> None:
    hits = ask(images, Query(key="000000000"), k=12)
    assert len(hits) == 11
    assert "000000000" not in {hit.item.key for hit in hits}
    assert colours(hits[:2]) == {"red"}


def test_image_plus_text_and_minus_text(images: ImageIndex) -> None:
    # Red and green light make yellow; yellow light without green is red.
    assert colours(ask(images, Query(image=square("red"), plus="green"))) == {"yellow"}
    assert colours(ask(images, Query(image=square("yellow"), minus="green"))) == {"red"}


@pytest.mark.parametrize(
    "query",
    [
        Query(), Query(text="a", image=b"b"), Query(image=b"a", key="b"), Query(text="a", plus="b"),
        Query(text="a", minus="b"), Query(text="  "), Query(plus="a"),
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_explained(images: ImageIndex, query: Query) -> None:
    with pytest.raises(ConfigError, match="search: "):
        ask(images, query)


def test_an_unknown_key(images: ImageIndex) -> None:
    with pytest.raises(DataError, match="no image with key 'nope'"):
        ask(images, Query(key="nope"))


def test_texts_that_look_like_mathematics_are_drawn_as_they_are() -> None:
    odd = r"$\frac$ and $x_$"
    answer = ImageAnswer(square("red"), odd, 0.5, True)
    assert png(search_figure([AnsweredQuery(odd, None, [answer], True)])).startswith(b"\x89PNG")


def test_an_index_of_another_model_is_refused(tmp_path: Path) -> None:
    colour_index.build(tmp_path, model_digest="theirs")
    with pytest.raises(DataError, match="another model"):
        open_index(tmp_path / "index", "mine")
