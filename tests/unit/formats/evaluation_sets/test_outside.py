"""Sets that name files outside of their folder, through links or by words, and what is no file: nothing is read."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import DataError
from tests.support.colours import square
from tests.support.suites import read

SECRET = square("yellow")
#: A name that a set gives to a picture -> what makes a file of it, in the folder of the pictures.
Make = Callable[[Path, Path], object]


NAMES: dict[str, tuple[str, Make | None]] = {
    "words": ("../../secret.jpg", None),
    "words in the middle": ("x/../../../secret.jpg", None),
    "the root": ("{root}/secret.jpg", None),
    "a link": ("link.jpg", lambda path, root: path.symlink_to(root / "secret.jpg")),
    "a link to a link": ("link.jpg", lambda path, root: path.symlink_to(root / "outside/again.jpg")),
    "a folder's link": ("away/secret.jpg", lambda path, root: path.parent.symlink_to(root)),
    "a device": ("zero.jpg", lambda path, root: path.symlink_to("/dev/zero")),
    "a pipe": ("pipe.jpg", lambda path, root: os.mkfifo(path)),
    "a zero byte": ("a\0b.jpg", None),
    "half a character": ("\ud800.jpg", None),
    "too long": ("x" * 5000 + ".jpg", None),
    "a folder": ("folder.jpg", lambda path, root: path.mkdir()),
}


def _coco(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    names = ["0.jpg", name]
    images = [{"id": number, "file_name": one} for number, one in enumerate(names)]
    rows = [{"image_id": number, "caption": f"thing {number}"} for number in range(2)]
    path = root / "set/captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path, {"images": str(root / "set/images")}


def _karpathy(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    rows = [{"filename": one, "split": "test", "sentences": [{"raw": f"thing {one[:9]!r}"}]} for one in ("0.jpg", name)]
    path = root / "set/dataset.json"
    path.write_text(json.dumps({"images": rows}))
    return path, {"images": str(root / "set/images")}


def _karpathy_folder(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    folder, _, file = name.rpartition("/")
    rows = [
        {"filename": file, "split": "test", "filepath": where, "sentences": [{"raw": where}]}
        for file, where in (("0.jpg", "images"), (file, f"images/{folder}"))
    ]
    path = root / "set/dataset.json"
    path.write_text(json.dumps({"images": rows}))
    return path, {}


def _lines(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    path = root / "set/captions.txt"
    path.write_bytes(f"0.jpg,one\n{name},other\n".encode("utf-8", "replace"))
    return path, {"images": str(root / "set/images")}


FORMATS = {"coco": _coco, "karpathy": _karpathy, "karpathy's folder": _karpathy_folder, "retrieval_txt": _lines}


@pytest.mark.parametrize("attack", NAMES)
@pytest.mark.parametrize("kind", FORMATS)
def test_captions_name_no_file_outside(tmp_path: Path, kind: str, attack: str) -> None:
    _world(tmp_path)
    name = _made(tmp_path, attack, tmp_path / "set/images")
    path, more = FORMATS[kind](tmp_path, name)
    _harmless(tmp_path, path, kind.partition("'")[0], "retrieval", more)


@pytest.mark.parametrize("attack", [name for name, (_, make) in NAMES.items() if make])
def test_folders_lead_to_no_file_outside(tmp_path: Path, attack: str) -> None:
    _world(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "set/test" / name).mkdir(parents=True)
        (tmp_path / "set/test" / name / "0.jpg").write_bytes(square("red"))
    _made(tmp_path, attack, tmp_path / "set/test/cat")
    _harmless(tmp_path, tmp_path / "set", "folder", "zero_shot", {})


def _world(root: Path) -> None:
    (root / "set/images").mkdir(parents=True)
    (root / "outside").mkdir()
    (root / "secret.jpg").write_bytes(SECRET)
    (root / "outside/again.jpg").symlink_to(root / "secret.jpg")
    (root / "set/images/0.jpg").write_bytes(square("red"))


def _made(root: Path, attack: str, folder: Path) -> str:
    name, make = NAMES[attack]
    if make is not None:
        make(folder / name, root)
    return name.format(root=root)


def _harmless(root: Path, path: Path, kind: str, task: str, more: dict[str, Any]) -> None:
    """The set is refused in one line, or its pictures are read, none of them from outside; and nothing waits."""
    found: list[object] = []

    def work() -> None:
        try:
            found.extend(data for _, data in read(root, path, kind, task, **more).read())
        except DataError as refused:
            found.append(str(refused))
        except BaseException as broken:  # noqa: BLE001 - a thread's failure is the test's
            found.append(broken)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert found and SECRET not in found
    assert all(isinstance(one, bytes | str) and (isinstance(one, bytes) or "\n" not in one) for one in found), found
