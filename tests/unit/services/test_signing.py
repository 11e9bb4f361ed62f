"""A model is taken only with a signature by the key that is trusted, over exactly its files."""

import base64
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from align.errors import ConfigError, CorruptError
from align.services.signing import SIGN_WITH, SIGNATURE_DIGEST, TRUST, require_signed, sign
from align.services.tracking.registry import Version
from tests.support.memory_mlflow import MemoryTracker
from tests.support.signing_keys import write_keys


@pytest.fixture(name="folder")
def _folder(tmp_path, monkeypatch):
    """A signed model in `packaged`, its signature in `model.sig`, and the keys, which the environment names."""
    private, public = write_keys(tmp_path)
    monkeypatch.setenv(SIGN_WITH, str(private))
    monkeypatch.setenv(TRUST, str(public))
    for name in ("MLmodel", "artifacts/finetuned/model.safetensors", "code/align/__init__.py"):
        file = tmp_path / "packaged" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    sign_again(tmp_path)
    return tmp_path


def sign_again(folder, model="packaged"):
    """Signs a folder as version 3 of a model, and has its signature in `model.sig`."""
    tracker = MemoryTracker(folder / "mlflow")
    for _ in range(3):
        version = tracker.registry.create_version("align", tracker.start_run("align", "run"), "model", {})
    sign(tracker, version, folder / model)
    (folder / "mlflow" / version.run_id / "signature/model.sig").rename(folder / "model.sig")


def require(folder, model="packaged", tags=None):
    """Requires that a folder is the signed model of version 3."""
    registry = SimpleNamespace(download=lambda version, artifact, scratch: folder)
    require_signed(
        registry, Version("align", 3, "run", {SIGNATURE_DIGEST: "any"} if tags is None else tags), folder / model
    )


def test_what_was_signed_is_taken_under_any_name(folder):
    require(folder)
    (folder / "packaged").rename(folder / "model")
    require(folder, "model")


def test_the_library_s_own_command_agrees(folder):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder / "packaged")]
    command += ["--signature", str(folder / "model.sig"), "--public_key", str(folder / "ours.pub")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (folder / "packaged/MLmodel").write_text("other")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def _link(folder):
    (folder / "packaged/MLmodel").rename(folder / "same")
    (folder / "packaged/MLmodel").symlink_to(folder / "same")


def _edited(change):
    def edit(folder):
        signature = json.loads((folder / "model.sig").read_text())
        change(signature["dsseEnvelope"])
        (folder / "model.sig").write_text(json.dumps(signature))

    return edit


def _says_otherwise(envelope):
    said = json.loads(base64.b64decode(str(envelope["payload"])))
    said["predicate"]["resources"].pop()
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()


def _write(name, text):
    def write(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def _by_another_key(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SIGN_WITH, str(write_keys(folder, "foreign")[0]))
        sign_again(folder)


def _of_another_model(folder):
    (folder / "other").mkdir()
    (folder / "other/MLmodel").write_text("MLmodel")
    sign_again(folder, "other")


ATTACKS = {
    "a changed file": (_write("packaged/MLmodel", "other"), "MLmodel"),
    "an added file": (_write("packaged/code/align/more.py", ""), "more.py"),
    "a file that git would have": (_write("packaged/.gitattributes", ""), ".gitattributes"),
    "a folder that git would have": (_write("packaged/.git/hook.py", ""), "hook.py"),
    "a hidden file": (_write("packaged/.hidden", ""), ".hidden"),
    "a removed file": (lambda folder: (folder / "packaged/MLmodel").unlink(), "MLmodel"),
    "a renamed file": (lambda folder: (folder / "packaged/MLmodel").rename(folder / "packaged/b"), "MLmodel"),
    "a link to the same bytes": (_link, "symlink"),
    "another key": (_by_another_key, "[Kk]ey"),
    "another model": (_of_another_model, "safetensors"),
    "no file of it": (lambda folder: (folder / "model.sig").unlink(), "does not hold"),
    "an empty one": (_write("model.sig", ""), ""),
    "no JSON": (_write("model.sig", "\0" * 100), ""),
    "other JSON": (_write("model.sig", "[]"), ""),
    "an empty object": (_write("model.sig", "{}"), ""),
    "deep JSON": (_write("model.sig", "[" * 100_000), ""),
    "one of seventeen megabytes": (lambda folder: (folder / "model.sig").write_bytes(b" " * (17 << 20)), "too large"),
    "another manifest": (_edited(_says_otherwise), "does not hold"),
    "no signatures in it": (_edited(lambda envelope: envelope.update(signatures=[])), ""),
    "another type": (_edited(lambda envelope: envelope.update(payloadType="text/plain")), ""),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_all_else_is_refused_in_one_line(folder, name):
    attack, said = ATTACKS[name]
    attack(folder)
    with pytest.raises(CorruptError, match=rf"^align version 3: [^\n]*{said}[^\n]*$"):
        require(folder)


def test_without_keys_nothing_is_signed_and_nothing_asked(folder, monkeypatch):
    with pytest.raises(
        CorruptError, match=r"^align version 3: there is no signature, and ALIGN_TRUSTED_KEY asks for one"
    ):
        require(folder, tags={})
    monkeypatch.delenv(SIGN_WITH)
    monkeypatch.setenv(TRUST, "")
    tracker = None
    sign(tracker, Version("align", 3, "run", {}), folder / "packaged")
    require(folder, tags={})


def _keys(folder):
    of_rsa, of_edwards = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()
    ours = load_pem_private_key((folder / "ours.pem").read_bytes(), None)
    plain = (Encoding.PEM, PrivateFormat.PKCS8)
    return {
        "absent": b"",
        "empty": b"",
        "text": b"secret words",
        "rsa": of_rsa.private_bytes(*plain, NoEncryption()),
        "ed25519": of_edwards.private_bytes(*plain, NoEncryption()),
        "encrypted": ours.private_bytes(*plain, BestAvailableEncryption(b"word")),
        "public": (folder / "ours.pub").read_bytes(),
        "rsa.pub": of_rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }


@pytest.mark.parametrize("variable", [SIGN_WITH, TRUST])
def test_a_key_of_another_kind_is_named_and_not_shown(folder, monkeypatch, variable):
    for name, key in _keys(folder).items():
        if variable == TRUST and name == "public":
            continue
        if name != "absent":
            (folder / name).write_bytes(key)
        monkeypatch.setenv(variable, str(folder / name))
        with pytest.raises(ConfigError) as error:
            sign_again(folder) if variable == SIGN_WITH else require(folder)
        kind = "private" if variable == SIGN_WITH else "public"
        why = (
            "No such file or directory" if name == "absent" else f"no {kind} key of curve P-256, P-384 or P-521 in PEM"
        )
        assert str(error.value) == f"{variable}={folder / name}: {why}"


def test_where_the_library_is_missing_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ConfigError, match=r"need model_signing: pip install 'align-mlops\[signing\]'$"):
        require(folder)
