"""The figure of confusions has a bounded size, whatever the number of classes; reliability shows each bin."""

import numpy as np

from align.evaluate.figures import confusion_figure, reliability_figure
from align.evaluate.measure import Classification
from align.evaluate.protocols.calibration import calibration
from align.formats.evaluation_set import EvaluationSet, held

CALIBRATED = calibration(np.array([0.3, 0.9, 0.9]), [False, True, False])


def classification(confusion: np.ndarray) -> Classification:
    classes = tuple(f"class {number}" for number in range(len(confusion)))
    source = EvaluationSet("mine", "classification", "x", [], classes, ("{}",), held([]))
    none = np.zeros(0, np.int64)
    return Classification(source, [], [], none, none.astype(np.float64), CALIBRATED, confusion, 0.5, {}, {}, {})


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


def test_reliability_shows_the_bins_that_have_answers() -> None:
    figure = reliability_figure(CALIBRATED)
    right, counts = figure.axes
    assert [bar.get_height() for bar in right.patches] == [0.0, 0.5]  # of 0.3: none; of 0.9: one of two
    assert [bar.get_height() for bar in counts.patches] == [1, 2]
    assert right.get_title(loc="left") == "calibration error 36.7%"  # (0.3 + 2 * 0.4) / 3
