from pathlib import Path

import pytest

from align.files import replace_directory, sha256_file, to_json, write_bytes


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"loss": float("nan")})


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("old")
    with replace_directory(target) as part:
        (part / "fresh").write_text("new")
        assert (target / "stale").exists()
    assert [file.name for file in target.iterdir()] == ["fresh"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept").write_text("old")

    def fail() -> None:
        with replace_directory(target) as part:
            (part / "half").write_text("x")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [file.name for file in target.iterdir()] == ["kept"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "half").write_text("x")
    with replace_directory(tmp_path / "out") as part:
        assert list(part.iterdir()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_write_bytes_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
