"""Worker processes: the order of results, and what becomes of an item that kills its worker."""

from functools import partial
from pathlib import Path

import pytest

from align.durable.processes import in_processes
from align.errors import DataError
from tests.support.deadly import deadly, deadly_once, twice


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_are_in_order(num_workers: int) -> None:
    assert list(in_processes(twice, range(20), num_workers)) == list(range(0, 40, 2))


def test_a_culprit_is_left_out_and_the_others_go_on() -> None:
    left_out: list[int] = []

    def instead(item: int) -> int:
        left_out.append(item)
        return -item

    results = list(in_processes(partial(deadly, frozenset({4, 9})), range(12), 2, instead=instead))
    assert results == [0, 2, 4, 6, -4, 10, 12, 14, 16, -9, 20, 22]
    assert left_out == [4, 9]


def test_a_culprit_that_cannot_be_left_out_is_named() -> None:
    results = in_processes(partial(deadly, frozenset({4})), range(12), 2, name_of=lambda item: f"data/{item}.parquet")
    with pytest.raises(DataError, match=r"^data/4\.parquet: .* killed twice .* larger machine, or take it out"):
        list(results)


def test_one_death_by_chance_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    function = partial(deadly_once, tmp_path / "died")
    assert list(in_processes(function, range(12), 2)) == list(range(0, 24, 2))
    assert (tmp_path / "died").exists()
    assert "a worker process was killed" in "".join(capfd.readouterr())


@pytest.mark.parametrize("num_items", [2, 12])
def test_where_everything_dies_the_machine_is_to_blame(num_items: int) -> None:
    all_items = frozenset(range(num_items))
    with pytest.raises(DataError, match=r"too little memory.* larger machine"):
        list(in_processes(partial(deadly, all_items), range(num_items), 2, instead=twice))


def test_an_error_of_the_function_stays_what_it_is() -> None:
    results = in_processes(partial(divided, 12), [1, 2, 0, 3], 2)
    assert [next(results), next(results)] == [12, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def divided(number: int, item: int) -> int:
    return number // item
