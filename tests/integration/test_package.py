"""The packaged model in a real MLflow, in a process of its own, and behind `mlflow models serve`."""

import base64
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from align.durable.files import sha256_folder
from align.errors import DataError
from align.formats.model_folder import Imported, read_config, read_weights, write_model_folder
from align.model.embedder import Embedder
from align.release.packaging.package import package
from align.release.packaging.packaged_model import REQUIREMENTS, TOWERS
from tests.support import ROOT, answers, small_data, small_model, wait_until
from tests.support.mlflow_server import free_port

LOAD = """
import base64, json, sys, warnings
warnings.simplefilter("ignore")
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import align
images = [open(path, "rb").read() for path in sys.argv[2:]]
both = model.predict(pandas.DataFrame({"image": [*images, None], "text": ["a red fox", None, "two grey owls"]}))
texts = model.predict(pandas.DataFrame({"text": ["a red fox"]}))
schema = [(column.name, column.required) for column in model.metadata.signature.inputs]
dear = sorted({"transformers", "torchvision", "torch._dynamo", "torch.distributed.tensor", "sympy"} & set(sys.modules))
import align.shard.shard  # the rest of an installed align is still found
got = {"code": align.__file__, "both": both.to_dict("list"), "texts": texts.to_dict("list"), "schema": schema}
print(json.dumps(got | {"dear": dear}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = measured(tmp_path_factory.mktemp("package"), '{"concepts/image_to_text/recall@10": 0.5}\n')
    pack(root, "packaged")
    return root


def measured(root, figures="{}\n"):
    """A model with fresh random weights, and what was measured of it."""
    small_model.write(root)
    (root / "evaluation").mkdir()
    (root / "evaluation/metrics.json").write_text(figures)
    return root


def pack(root, name, evaluation="evaluation"):
    model, reports = root / "models/finetuned", root / "reports"
    return package(model=model, evaluation=root / evaluation, out=root / name, reports=reports).digest


def test_it_loads_where_align_is_not_imported_and_agrees_with_the_embedder(folder, tmp_path):
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.jpg")
        paths[-1].write_bytes(small_data.jpeg(seed))
    command = [sys.executable, "-P", "-c", LOAD, str(folder / "packaged"), *map(str, paths)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert Path(got["code"]).is_relative_to(folder / "packaged" / "code")
    assert got["dear"] == []  # of what it computes with, it imports torch alone
    assert got["schema"] == [["image", False], ["text", False]]
    embedder = Embedder.load(folder / "models" / "finetuned")
    images = embedder.embed_images([path.read_bytes() for path in paths])
    texts = embedder.embed_texts(["a red fox", "two grey owls"])
    both = got["both"]
    np.testing.assert_allclose(both["image_embedding"][:2], images, atol=1e-6)
    np.testing.assert_allclose([both["text_embedding"][0], both["text_embedding"][2]], texts, atol=1e-6)
    assert both["image_embedding"][2] is None
    assert both["text_embedding"][1] is None
    assert list(got["texts"]) == ["text_embedding"]
    np.testing.assert_allclose(got["texts"]["text_embedding"], texts[:1], atol=1e-6)


def test_equal_inputs_give_equal_bytes_with_no_path_of_this_machine(folder):
    assert pack(folder, "again") == sha256_folder(folder / "packaged") == sha256_folder(folder / "again")
    files = [path for path in (folder / "again").rglob("*") if path.is_file()]  # never loaded, so without byte code
    assert not [path for path in files if str(folder).encode() in path.read_bytes()]
    assert not [path for path in files if str(ROOT).encode() in path.read_bytes()]
    assert json.loads((folder / "packaged" / "evaluation.json").read_text()) == {
        "concepts/image_to_text/recall@10": 0.5
    }


def test_its_report_is_replaced_whole(folder):
    (folder / "reports" / "of_an_older_version.json").write_text("{}")
    pack(folder, "again")
    assert {path.name for path in (folder / "reports").iterdir()} == {".align.json", "metrics.json", "report.json"}


def test_the_digest_is_another_for_another_model(folder, tmp_path):
    assert pack(measured(tmp_path), "packaged") != sha256_folder(folder / "packaged")


def test_the_name_of_an_imported_folder_is_no_part_of_the_model(tmp_path):
    digests = set()
    model = measured(tmp_path) / "models/finetuned"
    for name in ("align-base", "downloaded"):
        imported = Imported(folder=name, weights="b" * 64)
        changed = read_config(model).model_copy(update={"imported": imported})
        write_model_folder(changed, read_weights(model), model)
        digests.add(pack(tmp_path, "packaged"))
        assert json.loads((tmp_path / "reports/report.json").read_text())["imported"] == imported.model_dump()
    assert len(digests) == 1


def test_it_carries_only_the_code_that_loading_needs(folder):
    code = folder / "packaged" / "code" / "align"
    names = {path.relative_to(code).as_posix() for path in code.rglob("*.py")}
    assert {"__init__.py", "errors.py", "config/model.py", "model/__init__.py", "model/embedder.py"} <= names
    assert not {name for name in names if name.startswith(("services", "training", "cli", "package"))}
    assert {name for name in names if name.startswith("pairs/")} == {
        f"pairs/{name}.py" for name in ("__init__", "picture", "picture_header", "picture_pixels", "picture_process")
    }


def test_requirements_are_the_ranges_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    project, extras = declared["dependencies"], declared["optional-dependencies"]
    assert {*REQUIREMENTS, TOWERS["transformers"]} <= set(project)
    assert extras["timm"] == [TOWERS["timm"]]
    imported = set()
    for path in (*(ROOT / "align" / "model").glob("*.py"), *(ROOT / "align" / "pairs").glob("picture*.py")):
        imported |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
    names = {"PIL": "pillow", "align": "align"}
    listed = {re.split(r"[>=]", line)[0] for line in REQUIREMENTS}
    standard = set(sys.stdlib_module_names)
    assert {names.get(name, name) for name in imported - standard} - {"align"} <= listed


def test_missing_measures_are_one_clear_error(folder):
    with pytest.raises(DataError, match="run `align evaluate` first"):
        pack(folder, "out", evaluation="models")


@pytest.fixture(scope="module")
def ask(folder):
    reserved, port = free_port()
    reserved.close()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "packaged"), "--env-manager"]
    command += ["local", "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}/ping"
        wait_until(lambda: answers(url), alive=lambda: server.poll() is None, says=(folder / "log").read_text)
        yield lambda body: post(f"http://127.0.0.1:{port}/invocations", body)
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def encoded(seed):
    return base64.b64encode(small_data.jpeg(seed)).decode()


def test_texts_images_both_and_nulls_are_answered(folder, ask):
    embedder = Embedder.load(folder / "models" / "finetuned")
    image, text = embedder.embed_images([small_data.jpeg(0)])[0], embedder.embed_texts(["a red fox"])[0]
    rows = [{"image": encoded(0), "text": None}, {"image": None, "text": "a red fox"}]
    status, got = ask({"dataframe_records": rows})
    assert status == 200
    first, second = got["predictions"]
    np.testing.assert_allclose(first["image_embedding"], image, atol=1e-5)
    np.testing.assert_allclose(second["text_embedding"], text, atol=1e-5)
    assert first["text_embedding"] is None and second["image_embedding"] is None
    for column, cell, want in (("image", encoded(0), image), ("text", "a red fox", text)):
        status, got = ask({"dataframe_split": {"columns": [column], "data": [[cell], [cell]]}})
        assert status == 200 and [list(row) for row in got["predictions"]] == [[f"{column}_embedding"]] * 2
        np.testing.assert_allclose(got["predictions"][1][f"{column}_embedding"], want, atol=1e-5)


@pytest.mark.parametrize(("rows", "says"), [
    ([{"image": encoded(0)}, {"image": base64.b64encode(b"GIF89a, or not").decode()}], "row 1: image: "),
    ([{"image": base64.b64encode(small_data.jpeg(0)[:40]).decode()}], "row 0: image: "),
    ([{"image": "not base64!"}], "row 0: image: neither a file's bytes nor base64 of them"),
    ([{"image": 7}], "row 0: image: neither a file's bytes nor base64 of them"),
    ([{"text": "a red fox"}, {"text": ["a", "list"]}], "row 1: text: not a text but list"),
    ([{"text": 7}], "row 0: text: not a text but int"),
    ([{"txt": "a red fox"}], "give a column `image`, `text`, or both"),
])  # fmt: skip
def test_bad_input_is_refused_with_one_line(ask, rows, says):
    status, got = ask({"dataframe_records": rows})
    assert (status, got["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert got["message"].startswith(says) and "\n" not in got["message"] and got.keys() == {"error_code", "message"}
