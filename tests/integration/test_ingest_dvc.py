"""`align ingest` beside DVC: it says how DVC is told of what it made by hand, and never anything that is not so."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.dvc_projects import attempt, make_repository, shell
from tests.support.params import PARAMS_FILE
from tests.support.warc_records import picture
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

NUM = 10
STAGE = """
stages:
  ingest: {cmd: align ingest, deps: [table.jsonl], params: [ingest, download], outs: [data/raw, reports/ingest]}
"""
VALUES = [
    ("source: warc\n", "source: url_table\n"), ("allow_networks: []\n", "allow_networks: [127.0.0.0/8]\n"),
    ("archive: data/sample/archive.warc.gz\n", "archive: table.jsonl\n"), ("num_retries: 2\n", "num_retries: 0\n"),
    ("num_workers: null\n", "num_workers: 1\n"),
]  # fmt: skip
PLAIN = "align ingest"
KEEP = "dvc commit --force ingest"


@pytest.fixture(scope="module")
def running():
    with WebServer() as server:
        yield server


@pytest.fixture
def server(running):
    """It has the first picture, and fails at the others."""
    first_alone(running)
    running.requests.clear()
    running.agents.clear()
    return running


def first_alone(server):
    server.routes |= {f"/{number}.png": answer(b"", 503) for number in range(NUM)}
    recover(server, range(1))


def recover(server, numbers=range(NUM)):
    server.routes |= {f"/{number}.png": answer(picture(300 + number, 250)) for number in numbers}


@pytest.fixture(scope="module")
def made(tmp_path_factory, running):
    """A project whose params.yaml names the table."""
    params = (PARAMS_FILE).read_text()
    for old, new in VALUES:
        assert params.count(old) == 1, old
        params = params.replace(old, new)
    lines = [{"url": running.url(f"/{n}.png"), "caption": f"a good text number {n}"} for n in range(NUM)]
    table = "".join(json.dumps(line) + "\n" for line in lines)
    root = tmp_path_factory.mktemp("made") / "project"
    return make_repository(root, {"params.yaml": params, "dvc.yaml": STAGE, "table.jsonl": table}, "")


@pytest.fixture(scope="module")
def ingested(made, tmp_path_factory, running):
    """The project after `align ingest` that DVC was told of, and what the first said."""
    root = tmp_path_factory.mktemp("ingested") / "project"
    shutil.copytree(made, root, symlinks=True)
    first_alone(running)
    said = works(root, PLAIN)
    shell(root, KEEP, {})
    return root, said


@pytest.fixture
def new(made, tmp_path, server):
    """A copy of the project in which nothing has run."""
    return Path(shutil.copytree(made, tmp_path / "project", symlinks=True))


@pytest.fixture
def project(ingested, tmp_path, server):
    """A copy of the project after `align ingest`."""
    return Path(shutil.copytree(ingested[0], tmp_path / "project", symlinks=True))


def status(root):
    return json.loads(shell(root, "dvc status --json", {}) or "{}")


def typed(root, command):
    return attempt(root, command, {})


def works(root, command):
    """What a command that has to work says."""
    done = typed(root, command)
    assert done.returncode == 0, done.stderr
    return done.stderr


def num_pictures(root):
    return int(json.loads((root / "reports/ingest/metrics.json").read_text())["ingest/status/success"])


def change(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_what_is_fetched_by_hand_is_kept(project, ingested, server):
    """A `dvc repro` that follows removes neither the first ingest nor a second, and other values bring them back."""
    last = ingested[1].splitlines()[-1]
    assert last == (
        f"ingest: `{KEEP}` keeps this data/raw; without that, `dvc repro` removes it and fetches everything again"
    )
    assert status(project) == {}
    recover(server)
    assert works(project, PLAIN).splitlines()[-1] == last
    assert "changed outs" in str(status(project))
    shell(project, KEEP, {})
    assert (status(project), num_pictures(project)) == ({}, NUM)
    num_requests = len(server.requests)
    shell(project, "dvc repro", {})
    change(project / "params.yaml", "source: url_table\n", "source: warc\n")
    typed(project, "dvc repro")  # fails, and removes the outs
    assert not (project / "data/raw").exists()
    change(project / "params.yaml", "source: warc\n", "source: url_table\n")
    shell(project, "dvc repro", {})
    assert (num_pictures(project), len(server.requests)) == (NUM, num_requests)


def test_a_row_more_is_a_request_more_below_dvc(project, server):
    """DVC removes data/raw before it runs the stage; its cache still has what the web has answered."""
    recover(server, range(NUM + 1))
    works(project, PLAIN)
    shell(project, KEEP, {})
    with (project / "table.jsonl").open("a") as table:
        table.write(json.dumps({"url": server.url(f"/{NUM}.png"), "caption": "a good text of the last"}) + "\n")
    before = len(server.requests)
    shell(project, "dvc repro", {})
    asked = [request.partition("/")[2] for request in server.requests[before:]]
    assert (asked, num_pictures(project)) == (["robots.txt", f"{NUM}.png"], NUM + 1)
    assert not any(path.is_symlink() for path in (project / "data/raw").iterdir())


def test_an_out_is_not_made_with_other_values(project, server):
    files = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    num_requests = len(server.requests)
    for words, setting in (
        (PLAIN, "download.user_agent=another/1.0"),
        (PLAIN, "download.timeout_s=5.0"),
        (PLAIN, "paths.archive=other.jsonl"),
    ):
        done = typed(project, f"{words} --set {setting}")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert f"these differ: {setting.partition('=')[0]}; put them into params.yaml" in line
        assert "--set paths.raw=trial/raw --set paths.reports=trial/reports" in line
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".dvc" not in path.parts}
    assert (after, len(server.requests)) == (files, num_requests)


def test_a_trial_beside_the_out_is_free(project):
    trial = "--set paths.raw=trial/raw --set paths.reports=trial/reports"
    said = works(project, f"{PLAIN} {trial} --set download.user_agent=another/1.0")
    assert "DVC" not in said
    assert status(project) == {}
    works(project, f"{PLAIN} --set download.timeout_s=30.0")  # as params.yaml has it


def test_patience_is_changed_in_params_yaml(project, server):
    """What the refusal says: put it into params.yaml, and repeat the command; without `--set`, too."""
    recover(server)
    assert typed(project, f"{PLAIN} --set download.timeout_s=77.0").returncode == 1
    change(project / "params.yaml", " timeout_s: 30.0\n", " timeout_s: 77.0\n")
    works(project, PLAIN)
    shell(project, KEEP, {})
    assert (status(project), num_pictures(project)) == ({}, NUM)
    assert "timeout_s: 77.0" in (project / "dvc.lock").read_text()


def test_without_any_picture_dvc_keeps_nothing(new, server):
    server.routes["/0.png"] = answer(b"", 503)
    for words in (PLAIN, "dvc repro"):
        done = typed(new, words)
        assert done.returncode != 0
        assert "none of its 10 pairs has a picture; `align ingest` asks again" in done.stderr
        assert not (new / "dvc.lock").exists()
        assert (new / "data/raw/manifest.json").exists() and (new / "reports/ingest/report.html").exists()
    recover(server)
    works(new, PLAIN)
    shell(new, KEEP, {})
    assert (status(new), num_pictures(new)) == ({}, NUM)


def test_an_archive_that_changes_meanwhile_is_not_what_dvc_is_told(project, server):
    """dvc.lock would say that the changed table gave this data/raw."""

    def change_it(_):
        with (project / "table.jsonl").open("a") as table:
            table.write(json.dumps({"url": server.url("/1.png"), "caption": "a new text of the table"}) + "\n")
        return answer(picture(305, 250))

    server.routes["/5.png"] = change_it
    said = works(project, PLAIN)
    assert "DVC must not keep this data/raw: table.jsonl changed while it was made" in said
    assert KEEP not in said


def test_a_table_alone_with_pictures_beside_it_is_refused(new):
    (new / "photos").mkdir()
    (new / "photos/0.png").write_bytes(picture(300, 250))
    (new / "photos/captions.csv").write_text("file,caption\n0.png,a good text number 0\n")
    change(new / "params.yaml", "archive: table.jsonl\n", "archive: photos/captions.csv\n")
    change(new / "params.yaml", "source: url_table\n", "source: folder\n")
    for words in (PLAIN, "dvc repro"):
        done = typed(new, words)
        assert done.returncode != 0
        assert "photos/captions.csv: DVC would see this alone" in done.stderr
        assert "so that DVC sees its pictures: paths.archive: photos" in done.stderr
    change(new / "params.yaml", "archive: photos/captions.csv\n", "archive: photos\n")
    works(new, PLAIN)
