"""Steps: a result is whole or absent, also where two processes make one at once, and a killed one leaves nothing."""

import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from align.durable.steps import Step, Work
from align.durable.work import SCRATCH, work_directory
from align.errors import DataError
from align.services.executors.executors import LocalExecutor

SPAWN = multiprocessing.get_context("spawn")


def written(kept, out, item):
    assert isinstance(kept, Work)
    (out / "text").write_text(item)
    (out / "process").write_text(str(os.getpid()))


WRITTEN = Step("written", written, "texts")


def read(folder):
    """The files of all results of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*")) if path.is_file() and SCRATCH not in path.parts
    }  # fmt: skip


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_complete_is_not_made_again(tmp_path, num_workers):
    work, executor = Work(tmp_path), LocalExecutor(num_workers)
    work.run(WRITTEN, {"a": "one", "b": "two"}, executor)
    before = read(tmp_path)
    assert before["written/a/text"] == "one" and before["written/b/text"] == "two"
    work.run(WRITTEN, {"a": "another", "b": "another", "c": "three"}, executor)
    after = read(tmp_path)
    assert after.items() >= before.items() and after["written/c/text"] == "three"
    assert [*tmp_path.rglob("*.part")] == []


def joined(kept, out, item):
    texts = [(kept.folder / f"{name}/text").read_text() for name in ("head", f"written/{item}")]
    (out / "text").write_text(" ".join(texts))


def test_a_step_reads_what_it_needs_or_says_what_is_missing(tmp_path):
    work, executor = Work(tmp_path), LocalExecutor(1)
    step = Step("joined", joined, "texts", ["head", "written/{}"])
    work.make("head", lambda out: (out / "text").write_text("a"))
    work.make("head", lambda out: (out / "text").write_text("never"))
    with pytest.raises(DataError, match=r"written/x: missing; run the stage again"):
        work.run(step, {"x": "x"}, executor)
    assert not (tmp_path / "joined").exists()
    work.run(WRITTEN, {"x": "x"}, executor)
    work.run(step, {"x": "x"}, executor)
    assert (tmp_path / "joined/x/text").read_text() == "a x"
    with work.open("joined/x", "text") as stream:
        assert stream.read() == b"a x"
    with pytest.raises(DataError, match=r"joined/y/text: missing; run the stage again"):
        work.open("joined/y", "text")


def counted(kept, out, item):
    written(kept, out, item)
    return len(item)


def test_a_task_makes_the_results_of_its_lane_in_order_and_what_it_returns_is_told(tmp_path):
    work, told = Work(tmp_path), []
    items = {"a": "one", "b": "three", "c": "four", "d": "eleven"}
    work.make("written/b", lambda out: (out / "text").write_text("before"))
    assert work.lacking(["written/a", "written/b"]) == ["written/a"]
    work.run(Step("written", counted, "texts"), items, LocalExecutor(2), told.append, [["d", "b", "a"], ["c"]])
    assert told == [6, 3, 4]
    found = read(tmp_path)
    assert {name: found[f"written/{name}/text"] for name in items} == items | {"b": "before"}
    assert found["written/a/process"] == found["written/d/process"] != str(os.getpid())


def dies_of_two(kept, out, item):
    written(kept, out, item)
    if item == "two":
        os.kill(os.getpid(), signal.SIGKILL)


def left_out(kept, out, item):
    (out / "text").write_text(f"without {item}")


def test_an_item_that_kills_its_processes_gets_another_result_if_the_step_has_one(tmp_path):
    items, step = {"a": "one", "b": "two", "c": "three"}, Step("written", dies_of_two, "texts")
    with pytest.raises(DataError, match="texts: b: the worker process was killed twice"):
        Work(tmp_path / "one").run(step, items, LocalExecutor(2))
    # in another folder: were one item left, this process would make it
    Work(tmp_path / "two").run(replace(step, instead=left_out), items, LocalExecutor(2))
    assert [read(tmp_path / "two")[f"written/{name}/text"] for name in items] == ["one", "without two", "three"]


def test_a_failure_leaves_no_result_and_nothing_beside_it(tmp_path):
    def fails(out):
        (out / "half").write_text("half")
        raise DataError("cut off")

    with pytest.raises(DataError, match="cut off"):
        Work(tmp_path).make("written/a", fails)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and not (tmp_path / "written").exists()


def test_what_is_dropped_goes_at_once(tmp_path, monkeypatch):
    work = Work(tmp_path)
    work.run(WRITTEN, {"a": "one", "b": "two"}, LocalExecutor(1))
    work.make("head", lambda out: (out / "text").write_text("a"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("align.durable.steps.shutil.rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        work.drop(["written", "never made"])  # it is killed while it removes the files
    assert read(tmp_path) == {"head/text": "a"}


def make_with(folder, barrier, name):
    """Makes a result whose files name this maker, at the same time as another process."""

    def fill(out):
        for file in ("a", "b", "c"):
            (out / file).write_text(name)
        barrier.wait(60)

    Work(folder).make("written/x", fill)


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_processes_that_make_one_result_at_once_one_counts_whole(tmp_path, attempt):
    barrier = SPAWN.Barrier(2)
    makers = [SPAWN.Process(target=make_with, args=(tmp_path, barrier, name)) for name in ("one", "other")]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0, 0]  # both have a result, and no error
    found = read(tmp_path)
    assert found.keys() == {"written/x/a", "written/x/b", "written/x/c"} and len(set(found.values())) == 1
    assert [*(tmp_path / SCRATCH).iterdir()] == []


def killed(out):
    (out / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def make_and_die(folder):
    Work(folder).make("written/x", killed)


def test_what_a_killed_maker_leaves_is_no_result_and_goes_when_the_stage_resumes(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), work_directory(out, "stage", "key") as folder:
        maker = SPAWN.Process(target=make_and_die, args=(folder,))
        maker.start()
        maker.join(60)
        assert maker.exitcode == -signal.SIGKILL
        assert [path.name for path in folder.rglob("half")] == ["half"] and not (folder / "written").exists()
        raise KeyboardInterrupt
    with work_directory(out, "stage", "key") as folder:
        assert [*folder.rglob("half")] == []
        Work(folder).make("written/x", lambda new: None)
        assert (folder / "written/x").is_dir()
    assert not (out / SCRATCH).exists()
