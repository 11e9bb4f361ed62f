"""What failed runs leave, where several fail at once."""

import threading
from contextlib import suppress

from align.errors import DataError
from align.services.git import resolve
from flows.checkout.failed_runs import NUM_KEPT, kept_if_it_fails


def test_runs_that_fail_at_once_are_all_kept(tmp_path):
    """Each removes the older ones, which are the same for all."""
    parent, said = tmp_path / "failed", list[str]()
    for number in range(60):
        (parent / f"old-{number}/reports").mkdir(parents=True)
        for name in "abcdef":
            (parent / f"old-{number}/reports/{name}").touch()
    ready = threading.Barrier(4)

    def fail(name):
        worktree = tmp_path / name
        (worktree / "reports").mkdir(parents=True)
        (worktree / "params.yaml").write_text("paths:\n  reports: reports\n")
        with suppress(DataError), kept_if_it_fails(worktree, parent / name, said.append):
            ready.wait()
            resolve(tmp_path, "nowhere")  # fails

    runs = [threading.Thread(target=fail, args=(f"run-{number}",)) for number in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert not [line for line in said if "could not be kept" in line]
    kept = {path.name for path in parent.iterdir()}
    assert {f"run-{number}" for number in range(4)} <= kept and len(kept) == NUM_KEPT
