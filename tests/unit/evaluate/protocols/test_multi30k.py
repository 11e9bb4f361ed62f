import numpy as np
import pytest

from align.evaluate.protocols.multi30k import multi30k
from align.evaluate.protocols.retrieval import both_ways
from tests.golden.clip_benchmark_figures import retrieval_inputs
from tests.golden.embeddings import own_positives

CUTS = (1, 5, 10)


@pytest.mark.parametrize("captions", [1, 5])
def test_the_mean_of_six_recalls(captions):
    """English and German have five captions an image, French and Czech one."""
    images, texts, image_of_text = retrieval_inputs()
    kept = np.flatnonzero(np.arange(len(texts)) % 5 < captions)
    of = image_of_text[kept]
    units = range(len(images)), of.tolist()
    directions = both_ways(images, texts[kept], own_positives(of, len(images)), units)
    found = multi30k(directions, num_resamples=300, seed=0)
    recalls = {f"{way}/recall@{k}": part.hits(k).values.mean() for way, part in directions.items() for k in CUTS}
    assert {name: score.value for name, score in found.items() if name != "mean_recall"} == recalls
    score = found["mean_recall"]
    assert score.value == pytest.approx(np.mean(list(recalls.values())))
    assert score.chance < score.low < score.value < score.high < 1
    assert score.chance == pytest.approx(np.mean([found[name].chance for name in recalls]))
