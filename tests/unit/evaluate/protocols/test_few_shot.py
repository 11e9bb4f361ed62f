import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.few_shot import SEEDS, SHOTS, few_of_each, few_shot, least_squares
from align.evaluate.protocols.labelled import UNDECIDED, Labelled, accuracy

CLASSES = 4


def drawn(number: int, seed: int, *, name: str = "train", width: int = 12) -> Labelled:
    """Clusters that overlap; features of very unequal size, one of them constant."""
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(CLASSES, width))
    labels = np.arange(number) % CLASSES
    rows = (centres[labels] + rng.normal(size=(number, width))) * np.logspace(-2, 2, width)
    rows[:, 3] = 0.5
    return Labelled(name, rows.astype(np.float32), labels)


def scores_by_definition(few: Labelled, test: Labelled) -> np.ndarray:
    """The minimum of |X w - y|^2 + 2^10 |w|^2, as plain least squares with the penalty as further rows, in float64."""
    mean, deviation = few.features.mean(axis=0, dtype=np.float64), few.features.astype(np.float64).std(axis=0) + 1e-5

    def white(rows: np.ndarray) -> np.ndarray:
        return np.hstack([(rows - mean) / deviation, np.full((len(rows), 1), 100.0)])

    columns = []
    known = white(few.features)
    for label in range(CLASSES):
        wanted = [1.0 if one == label else -1.0 for one in few.labels]
        penalised = np.vstack([known, 32.0 * np.eye(known.shape[1])])
        columns.append(np.linalg.lstsq(penalised, np.array([*wanted, *[0.0] * known.shape[1]]), rcond=None)[0])
    return white(test.features) @ np.stack(columns, axis=1)


@pytest.mark.parametrize("number", [4, 12, 13, 100])
def test_scores_are_those_of_the_formula(number: int) -> None:
    """More pictures than features, and fewer: two forms of one solution."""
    few, test = drawn(number, 0), drawn(200, 1, name="test")
    expected = scores_by_definition(few, test)
    assert least_squares(few, CLASSES).scores(test.features) == pytest.approx(expected, abs=1e-6)
    assert least_squares(few, CLASSES).answers(test).tolist() == expected.argmax(axis=1).tolist()


def test_accuracies_are_those_of_the_formula() -> None:
    train, test = drawn(200, 0), drawn(400, 1, name="test")
    found = few_shot(train, test, CLASSES)
    assert list(found) == list(SHOTS)
    for shots, runs in found.items():
        expected = []
        for seed in SEEDS:
            generator = np.random.default_rng(seed)
            rows = [generator.permutation(np.where(train.labels == label)[0])[:shots] for label in range(CLASSES)]
            guessed = scores_by_definition(train.subset(np.concatenate(rows)), test).argmax(axis=1)
            expected.append(np.mean(guessed == test.labels))
        score = accuracy(runs, test, CLASSES, num_resamples=200, seed=0)
        assert score.value == pytest.approx(np.mean(expected), abs=5e-5)
    assert score.low > 0.6 > score.chance


def test_a_draw_of_one_is_part_of_a_draw_of_five_and_depends_on_the_seed() -> None:
    labels = np.arange(40) % CLASSES
    first, again, other = (few_of_each(labels, CLASSES, seed) for seed in (0, 0, 1))
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in again]
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in other]
    assert all((labels[rows] == label).all() and len(set(rows)) == 10 for label, rows in enumerate(first))


def test_equal_seeds_give_equal_bytes() -> None:
    train, test = drawn(200, 0), drawn(50, 1)
    first, again = (few_shot(train, test, CLASSES, seeds=(5,))[5][0] for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_a_class_with_fewer_pictures_gives_all_of_them() -> None:
    train, test = drawn(40, 0), drawn(50, 1)
    runs = few_shot(train, test, CLASSES, shots=(10, 25))
    assert [run.tolist() for run in runs[25]] != [[UNDECIDED] * 50] * 3
    every = least_squares(train, CLASSES).answers(test).tolist()
    assert all(run.tolist() == every for number in (10, 25) for run in runs[number])


def test_pictures_that_are_all_alike_are_undecided() -> None:
    alike = Labelled("train", np.ones((8, 3), dtype=np.float32), np.arange(8) % CLASSES)
    assert least_squares(alike, CLASSES).answers(alike).tolist() == [UNDECIDED] * 8


def test_bad_input_is_one_line() -> None:
    train, test = drawn(40, 0), drawn(50, 1, name="test")
    with pytest.raises(DataError, match=r"^train: 1 of 5 classes have no picture, the first is 4$"):
        few_shot(train, test, 5)
    for classes, call in ((3, few_shot), (3, lambda train, test, classes: least_squares(train, classes))):
        with pytest.raises(DataError, match=r"^train: label 3, but there are 3 classes$"):
            call(train, test, classes)
    with pytest.raises(DataError, match="12 wide, those of test 3"):
        few_shot(train, Labelled("test", test.features[:, :3], test.labels), CLASSES)
    for wrong in ({"shots": ()}, {"shots": (0, 5)}, {"seeds": ()}):
        with pytest.raises(DataError, match=r"want at least one of each, shots from 1 up"):
            few_shot(train, test, CLASSES, **wrong)
    train.features[:, 3] = np.nan
    with pytest.raises(DataError, match=r"^train: features that are NaN or infinite"):
        few_shot(train, test, CLASSES)
