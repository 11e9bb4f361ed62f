"""docs/own-data.md as it is typed, over a hundred pictures."""

import csv
import json
import re

import pytest

from tests.support import given_tars
from tests.support.dvc_projects import shell
from tests.support.img2dataset_folder import Options, Row, write_folder
from tests.support.journeys import AUTHOR, travel
from tests.support.small_data import jpeg
from tests.support.web_server import WebServer, after_failures, response

#: Pictures in each form.
NUM = 100
_WHO = ("people", "children", "dogs", "horses", "sailors", "dancers", "cyclists", "farmers", "birds", "tourists")
_WHERE = ("river", "forest", "harbour", "meadow", "bridge", "garden", "mountain", "village", "desert", "island")
#: What img2dataset is told on the page.
_IMG2DATASET = Options(resize_mode="keep_ratio", image_size=240)


def sentence(number):
    """A text of its own for each of a hundred pictures."""
    return f"a group of {_WHO[number % len(_WHO)]} waits beside the old {_WHERE[number // len(_WHO)]}"


def write_captions(root):
    """Writes `root/captions`: pictures, and captions.csv with the columns `file` and `text`."""
    folder = root / "captions"
    folder.mkdir()
    for number in range(NUM):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number, 320, 240))
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [(f"{number:03d}.jpg", sentence(number)) for number in range(NUM)]
        # A picture may have several lines.
        csv.writer(file).writerows([("file", "text"), *rows, ("000.jpg", "some people who wait for a boat")])


def write_sources(root):
    """Writes `root/captions` as above, its table with the columns `file`, `alt` and `synthetic`: every third cell of
    `alt` is empty.
    """
    write_captions(root)
    with (root / "captions" / "captions.csv").open("w", newline="") as file:
        rows = [
            (f"{number:03d}.jpg", f"{sentence(number)} at noon" if number % 3 else "", sentence(number))
            for number in range(NUM)
        ]
        csv.writer(file).writerows([("file", "alt", "synthetic"), *rows])


def write_pairs(root):
    """Writes `root/pairs`, a folder as img2dataset makes it; one picture was gone."""
    rows = [
        Row(f"/{n:03d}.jpg", sentence(n), "/page", jpeg(n, 320, 240) if n else None) for n in range(NUM)
    ]  # fmt: skip
    write_folder(root / "pairs", rows, _IMG2DATASET)


def write_addresses(root, server, busy, attempts):
    """Writes `root/train.tsv` in the form of Conceptual Captions, and puts its pictures on a server, which answers HTTP
    503 so many times for the busy ones.
    """
    lines = []
    for number in range(NUM):
        path, failures = f"/{number:03d}.jpg", attempts if number in busy else 0
        server.routes[path] = after_failures(failures, response(b"", 503), jpeg(number, 320, 240))
        lines.append(f"{sentence(number)}\t{server.url(path)}\n")
    (root / "train.tsv").write_text("".join(lines))


def write_classes(root):
    """Writes `root/clothing/{train,test}/CLASS/N.jpg`."""
    seed = 1000
    for part in ("train", "test"):
        for name in ("coat", "hat", "shoe"):
            folder = root / "clothing" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                (folder / f"{number}.jpg").write_bytes(jpeg(seed, 320, 240))
                seed += 1


STAGES = (
    "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "finetune", "evaluate",
    "package", "index",
)  # fmt: skip
#: Minutes on a quiet machine; a busy one takes several times as long.


@pytest.mark.journeys
def test_pictures_and_captions_to_a_model_that_can_be_searched(folder):
    write_captions(folder)
    said = travel(folder, "own-data", "pictures")
    project = folder / "photos"
    assert "captions.csv: pictures from column 'file', texts from column 'text'" in said
    assert f"ingest: {NUM + 1} pairs of {NUM} images" in said
    assert ran(said) == list(STAGES)
    assert (project / "hits.html").is_file() and found(said) == 10
    for page in ("ingest/report.html", "filter/report.html", "evaluation/report.html"):
        assert (project / "reports" / page).is_file(), page
    assert shell(project, "git status --short", {}).split() == ["??", "dvc.lock"]
    assert ran(shell(project, "dvc repro", {})) == []


@pytest.mark.journeys
def test_a_folder_of_img2dataset(folder):
    write_pairs(folder)
    said = travel(folder, "own-data", "img2dataset")
    assert ran(said) == list(STAGES) and found(said) == 10
    assert f"ingest: {NUM} pairs of {NUM - 1} images" in said
    assert funnel(folder / "crawled") == {"image_missing": 1}


@pytest.mark.journeys
def test_a_table_of_addresses_whose_server_is_busy_at_first(folder):
    busy = range(10, 15)
    with WebServer() as server:
        write_addresses(folder, server, busy, attempts=3)  # download.num_retries is 2
        said = travel(folder, "own-data", "table")
        asked = len(server.requests)
        project = folder / "crawled"
        again = shell(project, "dvc repro", {})
    assert f"{len(busy)} without a picture, {len(busy)} of these can be retried" in said
    assert "503" in said and "0 without a picture, 0 of these can be retried" in said
    assert server.agents == {"my-crawler/1.0 (+https://example.org/contact)"}
    assert ran(said) == list(STAGES[1:]), "dvc repro fetched the pictures again"
    assert ran(again) == [] and len(server.requests) == asked
    assert all(server.count(f"/{number:03d}.jpg") == (4 if number in busy else 1) for number in range(NUM))
    assert funnel(project) == {} and found(said) == 10


@pytest.mark.journeys
def test_sets_of_ones_own_pairs_and_of_classes(folder):
    write_captions(folder)
    write_classes(folder)
    said = travel(folder, "own-data", "sets")
    project = folder / "measured"
    shown = said[said.index("+ cat ") :]
    for name in ("test/text_to_image/recall@10", "clothing/zero_shot/accuracy", "clothing/knn/accuracy"):
        assert name in metrics(project) and name in shown, name


@pytest.mark.journeys
def test_a_model_of_tars_as_they_are(folder):
    given_tars.write(folder / "tars", num_tars=4)
    write_classes(folder)
    travel(folder, "own-data", "tars")
    measured = json.loads((folder / "trained/trial/metrics.json").read_text())
    assert {"clothing/zero_shot/accuracy", "clothing/knn/accuracy"} <= measured.keys()


@pytest.mark.journeys
def test_texts_of_several_sources(folder):
    write_sources(folder)
    said = travel(folder, "own-data", "sources")
    project = folder / "sourced"
    with_alt = sum(bool(number % 3) for number in range(NUM))
    assert ran(said) == list(STAGES)
    assert f"ingest: {NUM + with_alt} pairs of {NUM} images" in said
    overview = json.loads((project / "reports/filter/report.json").read_text())["overview"]
    assert [(row["name"], row["num_pairs"]) for row in overview["text_sources"]] == [
        ("synthetic", NUM), ("alt", with_alt),
    ]  # fmt: skip
    assert [row["name"] for row in overview["hosts"]] == ["."]  # the pictures lie beside their table
    assert "kept-from-synthetic" in (project / "reports/quality/report.json").read_text()


@pytest.mark.journeys
@pytest.mark.timeout(1500)  # seconds: three whole pipelines
def test_three_runs_compared(folder):
    write_captions(folder)
    said = travel(folder, "own-data", "compare", AUTHOR)
    project = folder / "tries"
    table = said[said.index("+ align compare") :]
    for name in ("base", "longer", "sigmoid", "pretrain.num_steps", "pretrain.loss", "model.logit_bias_init"):
        assert name in table, name
    assert (project / "runs.html").is_file()
    assert shell(project, "git status --short", {}).split() == ["??", "dvc.lock"], "a run touched the project"


def ran(said):
    """The stages that DVC ran after `code`, in order."""
    code, *stages = re.findall(r"^Running stage '(\w+)'", said, re.M)
    assert code == "code"
    return stages


def found(said):
    """Hits that `align search` printed."""
    return len(re.findall(r"^ +\d+ +-?\d\.\d{3} ", said, re.M))


def funnel(project):
    """Reason -> the pairs that it dropped first, where there are any."""
    report = json.loads((project / "reports/filter/report.json").read_text())
    return {row["reason"]: row["num_first"] for row in report["funnel"] if row["num_first"]}


def metrics(project):
    """What was measured, by set."""
    return dict(json.loads((project / "reports/evaluation/metrics.json").read_text()))
