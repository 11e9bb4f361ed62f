"""The first days of four people, as far as they type: what goes wrong says what to do, and that then works.

A shop with a messy table, a researcher with two models, the lead of a small project, and somebody who reads the code
before they believe it.
"""

import re
import shlex
import shutil

import pytest

import align
from align.cli import main
from flows.checkout.run_branch import record
from tests.support import ROOT, own_model
from tests.support.journeys import log_run

#: Of a spreadsheet: row -> what its price or its picture is.
PRICES = {8: "1.299,00 €", 9: "on request"}
PICTURES = {
    3: r"C:\shop\images\003.jpg", 4: r"Images\004.JPG", 5: "images/gone.jpg", 6: "https://shop.example/6.jpg", 7: "",
}  # fmt: skip


@pytest.fixture
def typed(monkeypatch, capsys):
    """What a command prints in a folder, and whether it ends well."""

    def run(folder, words):
        monkeypatch.chdir(folder)
        capsys.readouterr()
        code = main(shlex.split(words)[1:])
        return code == 0, "".join(capsys.readouterr())

    return run


@pytest.fixture
def project(tmp_path, finished_project):
    """A copy of a small project that has run."""
    shutil.copytree(finished_project.parent, tmp_path / "home", symlinks=True)
    return tmp_path / "home" / finished_project.name


@pytest.mark.journeys
def test_a_shop(folder, typed):
    own_model.write(folder, 30)
    (folder / "photos").rename(folder / "goods")
    rows = [
        f"{row:03d};<b>Stück</b>, Nr. {row};{PRICES.get(row, f'{row},90')};{('Dress', 'Shoe')[row % 2]};"
        f"{PICTURES.get(row, f'images/{row:03d}.jpg')}\n"
        for row in range(30)
    ]
    rows.append("030;a text; with a separator;1,90;Shoe;images/001.jpg\n")
    table, search = folder / "goods/goods.csv", "align search --index catalogue/index --model imported"
    table.write_bytes(("SKU;Title;Price;Category;Picture\n" + "".join(rows)).encode("windows-1252"))
    assert typed(folder, "align init shop --profile catalogue --set paths.archive=goods/goods.csv")[0]
    shop = folder / "shop"
    is_fine, said = typed(shop, "align index --source --model kakaobrain/align-base")
    assert not is_fine and "hf download kakaobrain/align-base --local-dir align-base" in said
    assert typed(shop, "align import_model --from ../align-base --out imported")[0]

    is_fine, said = typed(shop, "align index --source --model imported")
    assert is_fine and "25 images of" in said and "6 rows left out: catalogue/index.left_out.csv" in said
    for reason in ("path of Windows", "other letters", "is missing", "address of the web", "quote texts"):
        assert reason in said
    assert "chance 50%: the model may know another kind of pictures" in said
    assert "column Price, row 11: 'on request' is no number" in said
    is_fine, said = typed(shop, f"{search} --where 'Price<=20'")
    assert not is_fine and "`align index` names the cell" in said

    table.write_bytes(table.read_bytes().replace(b"on request", b""))
    assert typed(shop, "align index --source --model imported --update")[0]
    is_fine, said = typed(shop, f"{search} --where Category=dress")
    assert is_fine and "in Category there is: Dress, Shoe" in said
    is_fine, said = typed(shop, f"{search} --where Category=Dress --where 'Price<=20' --json")
    assert is_fine and said.count('"SKU"') == 7 and "Nr. 2" in said and "<b>" not in said
    assert '"SKU": "008"' in typed(shop, f"{search} --where 'Price>1000' --json")[1]
    is_fine, said = typed(shop, "align serve")
    assert not is_fine and "align serve --local" in said


@pytest.mark.journeys
def test_a_researcher(project, typed, monkeypatch):
    is_fine, said = typed(project, "align compare models/pretrained models/finetuned")
    assert not is_fine and "`align evaluate --compare A B`" in said
    is_fine, said = typed(project, "align evaluate --compare models/pretrained models/finetuned --reports compared")
    assert is_fine and (project / "compared/report.html").is_file()
    record(project, "again", "the same")
    for name in ("demo", "again"):
        log_run(project, name)
    is_fine, said = typed(project, "align compare demo again")
    assert is_fine and re.match(r"(A and B are|[AB] is|Which is) (not told apart|better)", said)

    monkeypatch.chdir(project)
    model, data = align.load("models/finetuned"), align.open_dataset("data/shards")
    with pytest.raises(align.errors.DataError, match="not a string but NoneType"):
        model.embed_texts([None])
    assert data[0].text == next(iter(data)).text and len(model.embed_texts("a fox")) == 1


@pytest.mark.journeys
def test_a_lead(project, typed):
    is_fine, said = typed(project, "align serve")
    assert not is_fine and "align register" in said and "align serve --local" in said
    assert typed(project, "align register")[0]
    is_fine, said = typed(project, "align promote --set promote.min_times_chance=1000")
    assert not is_fine and "it may be a random order: train longer" in said
    is_fine, said = typed(project, "align promote")
    assert is_fine and "is the champion" in said
    is_fine, said = typed(project, "align plan --for 6xH100")
    assert is_fine and "does not fit" in said and "less than a second" in said
    is_fine, said = typed(project, "align runs")
    assert is_fine


def test_who_reads_the_code_finds_what_the_list_says():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    asked = re.search(r"fifteen minutes, some ([\d,]+) lines in this order:\n\n(.*?)\n\n", text, re.S)
    files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", asked[2])]
    num_lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert len(files) >= 5 and 0.9 < num_lines / int(asked[1].replace(",", "")) < 1.1
