"""The paper's tables: every metric is shown once, beside published rows where there are any."""

import re

import numpy as np
import pytest
from pydantic import ValidationError

from align.evaluate.figures import confusion_figure
from align.evaluate.measure import Classification
from align.evaluate.paper_table import HEADINGS, REST, Published, figures, grouped, paper_tables, published
from align.formats.evaluation_set import EvaluationSet, held


def score(name, value):
    return {name: value, f"{name}/low": value - 0.01, f"{name}/high": value + 0.01, f"{name}/chance": 0.001}


def html(metrics, **sets):
    of = {name: {"num_images": number} for name, number in sets.items()}
    return {title: "\n".join(blocks) for title, blocks in paper_tables(metrics, of, "our model")}


def rows(block):
    """Cells of the table of the paper, as text."""
    found = re.findall(r"<tr.*?</tr>", block.partition("<table class=paper>")[2].partition("</table>")[0])
    return [
        [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in found
    ]


def test_our_row_stands_beside_published_ones():
    metrics = score("Flickr30K/text_to_image/recall@1", 0.5) | score("Flickr30K/image_to_text/recall@10", 0.75)
    metrics |= score("Flickr30K/image_to_text/recall@1", 0.6)
    table = html(metrics, Flickr30K=1000)["Image-text retrieval"]
    cells = rows(table)
    assert cells[0] == ["set", "recall@1", "recall@10"] and cells[1][0].startswith("Flickr30K: ")
    assert cells[2] == ["image → text", "60.0% 59.0% – 61.0% by chance 0.1%", "75.0% 74.0% – 76.0% by chance 0.1%"]
    turn = next(place for place, row in enumerate(cells) if row[0].startswith("text → image"))
    assert cells[turn] == ["text → image", "50.0% 49.0% – 51.0% by chance 0.1%", ""]
    to_text, to_image = (
        {re.sub(r"\W+\d+$", "", row[0]): row[1:] for row in part} for part in (cells[3:turn], cells[turn + 1 :])
    )
    assert to_text["ALIGN"] == ["88.6%", "99.7%"] and to_text["CLIP"] == ["88.0%", "99.4%"]
    assert to_text["coyo-align"] == ["88.1%", "–"] and to_text["kakaobrain/align-base"] == ["87.3%", "–"]
    assert to_image["ALIGN"] == ["75.7%", "–"] and to_image["kakaobrain/align-base"] == ["73.6%", "–"]


def test_source_and_protocol_need_no_mouse():
    table = html(score("coco/image_to_text/recall@1", 0.5), coco=5000)["Image-text retrieval"]
    said = "ALIGN: Jia et al. 2021, arXiv 2102.05918 (ALIGN); table 1, zero-shot, L2 + BERT-Large"
    assert f'<td title="{said}">58.6%</td>' in table
    (number,) = re.findall(rf"<p class=source id=source-(\d+)>\d+ {re.escape(said)}\.</p>", table)
    assert f"href=#source-{number} " in table
    for link in re.findall(r"href=#source-(\d+) ", table):
        assert f"id=source-{link}>" in table


def test_a_set_of_another_size_is_not_comparable():
    metrics = score("coco/image_to_text/recall@1", 0.5)
    assert "42 pictures, the published one 5,000" in html(metrics, coco=42)["Image-text retrieval"]
    assert "not comparable" not in html(metrics, coco=5000)["Image-text retrieval"]


def test_a_set_that_nobody_published_has_our_row_alone():
    metrics = score("concepts/image_to_text/recall@1", 0.5)
    table = html(metrics, concepts=10)["Image-text retrieval"]
    assert [row[0] for row in rows(table)] == ["set", "concepts", "image → text"]
    assert "source-" not in table


@pytest.mark.parametrize(("metric", "heading"), [
    ("zero_shot/accuracy", "Classification"),
    ("zero_shot/top5", "Classification"),
    ("frozen/accuracy", "Classification"),
    ("knn/accuracy", "Classification"),
    ("cxc/sts", "Crisscrossed Captions"),
    ("mean_recall", "Image-text retrieval"),
    ("of_tomorrow/figure", REST),
])  # fmt: skip
def test_every_metric_has_its_place(metric, heading):
    shown = html(score(f"a.b/{metric}", 0.25), **{"a.b": 3})
    assert list(shown) == [heading]
    assert ("25.0%" if heading in HEADINGS else "0.25") in shown[heading]


def test_columns_are_in_the_papers_order():
    names = ["mean_recall", *(f"{way}/{end}" for way in ("text_to_image", "image_to_text") for end in
             ("mean_recall", "recall@10", "recall@5", "recall@1"))]  # fmt: skip
    (by_set,) = grouped([f"s/{name}" for name in names], ["s"]).values()
    assert by_set["s"] == [*names[:4:-1], *names[4:0:-1], "mean_recall"]


def test_nothing_is_lost_or_shown_twice():
    names = ["a/zero_shot/accuracy", "a/b/zero_shot/accuracy", "a/odd", "stray"]
    metrics = {key: value for name in names for key, value in score(name, 0.5).items()}
    metrics |= {"a/zero_shot/accuracy/majority": 0.3}
    assert figures(metrics) == names
    by_heading = grouped(figures(metrics), ["a", "a/b"])
    assert [
        f"{name}/{metric}".lstrip("/") for of in by_heading.values() for name, part in of.items() for metric in part
    ] == names
    assert "always the most frequent class" in html(metrics, **{"a": 1, "a/b": 2})["Classification"]


def test_names_of_strangers_are_text():
    table = html(score("<script>/zero_shot/<b>", 0.5) | score("<i>", 0.5), **{"<script>": 1})
    assert all("<script" not in block and "<b>" not in block and "<i>" not in block for block in table.values())


def test_published_figures_are_well_formed():
    data = published()
    for name, one in data.sets.items():
        assert data.of(name) is one and data.of(name.upper()) is one
        for row in one.rows:
            for metric in row.figures:
                (heading,) = grouped([f"{name}/{metric}"], [name])
                assert heading != REST, f"{name}: {metric} is under no heading"
    names = [alias for name, one in data.sets.items() for alias in (name, *one.also)]
    assert len(names) == len(set(names)) and all(re.fullmatch("[a-z0-9]+", name) for name in names)
    assert data.of("concepts") is None
    with pytest.raises(ValidationError, match="no source 'nowhere'"):
        broken = data.model_dump()
        broken["sets"]["coco"]["rows"][0]["source"] = "nowhere"
        Published.model_validate(broken)


def classification(confusion):
    classes = tuple(f"class {number}" for number in range(len(confusion)))
    source = EvaluationSet("mine", "classification", "x", [], classes, ("{}",), held([]))
    none = np.zeros(0, np.int64)
    return Classification(source, [], [], none, confusion, 0.5, {}, {}, {})


def test_of_many_classes_those_with_the_most_confusions_are_shown():
    confusion = np.diag(np.full(500, 10))
    confusion[400, 7] = confusion[3, 450] = 5
    confusion[[8, 9], [9, 8]] = 2
    figure = confusion_figure(classification(confusion))
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == len(axes.get_xticklabels()) == 60
    first = ["class 3", "class 7", "class 8", "class 9", "class 400", "class 450"]
    assert [name for name in names if name in first] == first
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (60, 60)
    assert shown[names.index("class 400"), names.index("class 7")] == 5 / 15
    assert axes.get_title() == "the 60 of 500 classes with the most confusions"
    assert max(figure.get_size_inches()) < 15


def test_a_few_classes_are_all_shown():
    axes = confusion_figure(classification(np.eye(60, dtype=np.int64))).axes[0]
    assert (len(axes.get_yticklabels()), axes.get_title()) == (60, "")
