"""The evaluation report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.evaluate.examples import DIRECTIONS, RetrievalExample, RetrievalExamples
from align.evaluate.measure import Classification, Retrieval
from align.evaluate.protocols.recall import Score
from align.formats.measured_sets import TEST
from align.html import escape, gallery, heading, page, paragraph, picture, table
from align.pairs.picture import thumbnail

#: Side of the pictures in the page.
THUMBNAIL_PX = 128


def evaluation_page(
    retrievals: Sequence[Retrieval],
    classifications: Sequence[Classification],
    examples: Mapping[str, RetrievalExamples],
    pictures: Mapping[str, bytes],
    model: str,
) -> str:
    """Returns the HTML of the page.

    Args:
        retrievals: measured retrieval sets.
        classifications: measured classification sets.
        examples: direction -> examples of the first retrieval set.
        pictures: file name -> PNG: recall.png and SET_confusion.png are shown.
        model: what was measured, such as `the fine-tuned model`.
    """
    blocks = [heading("Evaluation sets"), _sets(retrievals, classifications)]
    if retrievals:
        blocks += [
            heading(f"Retrieval of {model}"),
            paragraph(
                "recall@K is the published protocol: the share of queries with at least one correct item in the top "
                "K, where a text is correct for the images that it was written for, those of its concept. "
                "recall_any_owner@K is ours, and kinder: equal texts are one item, correct for the images of all of "
                "its concepts; no published figure is comparable. Ties count as wrong. Intervals are 95 % bootstrap "
                "intervals over concepts. Chance is the exact value for a random order."
            ),
            *(
                [paragraph("The set test is of the training distribution: held-out clusters of the same sources.")]
                if any(result.source.name == TEST for result in retrievals)
                else []
            ),
            picture(pictures["recall.png"], alt="recall against chance"),
            _scores({result.source.name: result.scores for result in retrievals}),
        ]
    for result in classifications:
        name = result.source.name
        blocks += [
            heading(f"Classification of {model}: {name}"),
            paragraph(
                f"Zero-shot answers with the class whose mean text embedding over {len(result.source.templates)} "
                "templates is nearest, kNN with the class of the nearest reference image. Always answering with the "
                f"most frequent class would be right in {result.majority:.1%} of cases."
            ),
            _scores({name: result.scores}),
            picture(pictures[f"{name}_confusion.png"], alt="confusion of classes"),
            _classes(result),
        ]
    for direction, of in examples.items():
        where = f"{DIRECTIONS[direction]} ({retrievals[0].source.name})"
        for verdict, group in (("right", of.right), ("wrong", of.wrong)):
            blocks += [heading(f"Examples, {where}: answered {verdict}")]
            blocks += [_example(example) for example in group] or [paragraph("None.")]
    return page("Evaluation", _lead(retrievals, classifications), blocks)


def _lead(retrievals: Sequence[Retrieval], classifications: Sequence[Classification]) -> str:
    parts = [
        f"{result.source.name}: recall@10 {result.scores['image_to_text/recall@10'].value:.1%} image to text, "
        f"{result.scores['text_to_image/recall@10'].value:.1%} text to image"
        for result in retrievals
    ]
    parts += [
        f"{result.source.name}: zero-shot accuracy {result.scores['zero_shot/accuracy'].value:.1%}"
        for result in classifications
    ]
    return "; ".join(parts) + "."


def _sets(retrievals: Sequence[Retrieval], classifications: Sequence[Classification]) -> str:
    rows: list[list[object]] = []
    results: list[Retrieval | Classification] = [*retrievals, *classifications]
    for result in results:
        source = result.source
        concepts = {image.concept for image in source.images}
        texts = len(result.items.texts) if isinstance(result, Retrieval) else len(source.classes)
        rows.append([source.name, source.kind, source.description, len(source.images), texts, len(concepts)])
    left_out = [[result.source.name, key, why] for result in results for key, why in list(result.faults.items())[:20]]
    sets = table(["set", "kind", "description", "images", "texts or classes", "concepts"], rows)
    if not left_out:
        return sets
    number = sum(len(result.faults) for result in results)
    return (
        sets
        + paragraph(f"{number:,} pictures were left out, as they could not be shown to the model; some of them:")
        + table(["set", "picture left out", "why"], left_out)
    )


def _scores(scores: Mapping[str, Mapping[str, Score]]) -> str:
    rows = [
        [name, metric, f"{s.value:.1%}", f"{s.low:.1%} – {s.high:.1%}", f"{s.chance:.2%}", f"{s.value / s.chance:.1f}×"]
        for name, of_set in scores.items()
        for metric, s in of_set.items()
    ]
    return table(["set", "metric", "value", "95 % interval", "chance", "times chance"], rows)


def _classes(result: Classification) -> str:
    names = result.source.classes
    rows = []
    for index in sorted(range(len(names)), key=lambda row: (-int(result.confusion[row].sum()), names[row])):
        counts = result.confusion[index]
        if total := int(counts.sum()):
            others = counts.copy()
            others[index] = 0
            mistaken = names[int(others.argmax())] if others.any() else "–"
            rows.append([names[index], total, f"{counts[index] / total:.0%}", mistaken])
    return table(["class", "images", "zero-shot accuracy", "most often misclassified as"], rows)


def _example(example: RetrievalExample) -> str:
    css = "good" if example.rank == 1 else "bad"
    missed = "" if example.rank == 1 else f" The best correct answer has rank {example.rank}."
    if isinstance(example.query, bytes):
        texts = "".join(
            f"<li class={'good' if correct else 'bad'}>{escape(text)}</li>" for text, correct in example.answers
        )
        missing = f"<p>{escape(missed)} A correct text: {escape(example.correct)}</p>" if missed else ""
        query = picture(thumbnail(example.query, THUMBNAIL_PX), mime="image/jpeg", alt="query")
        return f"<table class=example><tr><td>{query}</td><td><ol>{texts}</ol>{missing}</td></tr></table>"
    shown = [
        (thumbnail(image, THUMBNAIL_PX), str(position), "good" if correct else "bad")
        for position, (image, correct) in enumerate(example.answers, 1)
        if isinstance(image, bytes)
    ]
    if missed and isinstance(example.correct, bytes):
        shown.append((thumbnail(example.correct, THUMBNAIL_PX), f"{example.rank} (correct)", ""))
    return f"<p><span class={css}>“{escape(example.query)}”</span>{escape(missed)}</p>{gallery(shown)}"
