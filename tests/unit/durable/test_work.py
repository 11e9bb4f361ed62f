"""Work folders: one run at a time, other parameters, and a kill at the end."""

import signal
from functools import partial
from itertools import count

import pytest

import align.durable.files
from align.durable.files import MARK, replace_directory
from align.durable.work import finish, is_finished, work_directory
from align.errors import LockedError
from tests.support.small_process import killed_at, small_process


def test_a_second_run_is_refused_and_loses_nothing_of_the_first(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", "one") as work:
        (work / "0").write_text("hours of work")
        for key in ("one", "two"):
            with pytest.raises(LockedError), work_directory(out, "stage", key):
                pass
        raise KeyboardInterrupt
    assert (work / "0").read_text() == "hours of work"
    with work_directory(out, "stage", "two") as work:
        assert not (work / "0").exists()


def test_what_is_finished_is_known_to_the_run_that_resumes_also_after_it_was_put_in_its_place(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", "key") as work:
        (work / "0").write_text("days of work")
        assert not is_finished(work)
        finish(work, [work / "0"])
        raise KeyboardInterrupt
    with work_directory(out, "stage", "key") as work:
        assert is_finished(work)
        key = (work / ".work.json").read_text()
    (out / ".work.json").write_text(key)  # a run that was killed at its very end leaves it
    with work_directory(out, "stage", "key") as work:
        assert is_finished(work) and (work / "0").read_text() == "days of work"
    with work_directory(out, "stage", "another") as work:
        assert not is_finished(work)


def unfinished(out, key):
    """A run that fails after it has made file 0."""
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", key) as work:
        (work / "0").write_text("days of work")
        raise KeyboardInterrupt


def test_work_that_is_discarded_is_told(tmp_path, capsys):
    out = tmp_path / "out"
    for key in ("one", "two", "three"):
        unfinished(out, key)
        told = capsys.readouterr().err
        if key == "one":
            assert told == ""
        else:
            assert told.startswith(
                f"{tmp_path}/.out.part: discarding the work of an earlier run, which had other param"
            )
            assert told.count("\n") == 1
    for key in ("three", "four"):  # the output of an earlier run is replaced, as ever
        with work_directory(out, "stage", key):
            pass
    assert capsys.readouterr().err == ""


def kill_at_each_step(folder, before, can_exchange):
    with pytest.MonkeyPatch.context() as patch:
        if not can_exchange:
            patch.setattr(align.durable.files, "_exchange", lambda one, other: False)
        _kill_at_each_step(folder, before)


def _kill_at_each_step(folder, before):
    made_by = None if before == "a person" else "stage"

    def finish(out):
        with work_directory(out, made_by, "key") as work:
            assert (work / "0").exists(), f"step {step}"

    for step in count():
        out = folder / f"{step}" / "out"
        out.parent.mkdir()
        if before == "stage":
            with replace_directory(out, "stage") as old:
                (old / "old").touch()
        elif before == "a person":
            out.mkdir()
            (out / "old").touch()
        with pytest.raises(KeyboardInterrupt), work_directory(out, made_by, "key") as work:
            (work / "0").write_text("days of work")
            raise KeyboardInterrupt
        if (code := killed_at(step, partial(finish, out))) == 0:
            break
        assert code == -signal.SIGKILL
        if not (out / "0").exists() or (out / ".work.json").exists():  # otherwise it had come to its end
            finish(out)
        assert (out / "0").read_text() == "days of work"
        left = [path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")]
        assert left == ["out"], f"step {step}: {left}"
        assert {path.name for path in out.iterdir()} == ({MARK, "0"} if made_by else {"0"})
    assert step >= 8, step


@pytest.fixture(scope="module")
def small():
    with small_process() as process:
        yield process


@pytest.mark.parametrize("before", [None, "stage", "a person"])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_the_end_loses_nothing(tmp_path, small, before, can_exchange):
    small.submit(kill_at_each_step, tmp_path, before, can_exchange).result()


def test_another_run_takes_an_output_that_a_kill_left_with_a_key_for_what_it_is(tmp_path, capsys):
    out = tmp_path / "out"
    with work_directory(out, "stage", "one") as work:
        (work / "0").touch()
    (out / ".work.json").write_text('{"key": "one"}\n')
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", "two"):
        assert sorted(path.name for path in out.iterdir()) == [MARK, "0"]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", "one") as work:
        assert not (work / "0").exists()
        raise KeyboardInterrupt
    assert (out / "0").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1
