"""The packaged model behind `mlflow models serve`: what it answers, and how it refuses."""

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.model.embedder import Embedder
from align.release.packaging.package import package
from tests.support import small_data, small_model
from tests.support.mlflow_server import free_port

Ask = Callable[[Any], tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    small_model.write(root)
    (root / "evaluation").mkdir()
    (root / "evaluation" / "metrics.json").write_text("{}\n")
    package(
        model=root / "models" / "finetuned", evaluation=root / "evaluation", out=root / "packaged", reports=root / "r"
    )
    return root


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Ask]:
    reserved, port = free_port()
    reserved.close()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "packaged"), "--env-manager"]
    command += ["local", "-h", "127.0.0.1", "-p", str(port), "-w", "1"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/ping", server, folder / "log")
        yield lambda body: post(f"http://127.0.0.1:{port}/invocations", body)
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def wait_until_up(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def post(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def encoded(seed: int) -> str:
    return base64.b64encode(small_data.jpeg(seed)).decode()


def test_texts_images_both_and_nulls_are_answered(folder: Path, ask: Ask) -> None:
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


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"image": encoded(0)}, {"image": base64.b64encode(b"GIF89a, or not").decode()}], "row 1: image: "),
        ([{"image": base64.b64encode(small_data.jpeg(0)[:40]).decode()}], "row 0: image: "),
        ([{"image": "not base64!"}], "row 0: image: neither a file's bytes nor base64 of them"),
        ([{"image": 7}], "row 0: image: neither a file's bytes nor base64 of them"),
        ([{"text": "a red fox"}, {"text": ["a", "list"]}], "row 1: text: not a text but list"),
        ([{"text": 7}], "row 0: text: not a text but int"),
        ([{"txt": "a red fox"}], "give a column `image`, `text`, or both"),
    ],
)
def test_bad_input_is_refused_with_one_line(ask: Ask, rows: list[dict[str, Any]], says: str) -> None:
    status, got = ask({"dataframe_records": rows})
    assert (status, got["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert got["message"].startswith(says) and "\n" not in got["message"] and got.keys() == {"error_code", "message"}
