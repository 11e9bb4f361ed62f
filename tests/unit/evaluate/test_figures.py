"""The figure of confusions has a bounded size, whatever the number of classes."""

import numpy as np

from align.evaluate.figures import confusion_figure
from align.evaluate.measure import Classification
from align.formats.evaluation_set import EvaluationSet, held


def classification(confusion: np.ndarray) -> Classification:
    classes = tuple(f"class {number}" for number in range(len(confusion)))
    source = EvaluationSet("mine", "classification", "x", [], classes, ("{}",), held([]))
    return Classification(source, [], [], np.zeros(0, np.int64), confusion, 0.5, {}, {}, {})


def test_of_many_classes_those_with_the_most_confusions_are_shown() -> None:
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


def test_a_few_classes_are_all_shown() -> None:
    axes = confusion_figure(classification(np.eye(60, dtype=np.int64))).axes[0]
    assert (len(axes.get_yticklabels()), axes.get_title()) == (60, "")
