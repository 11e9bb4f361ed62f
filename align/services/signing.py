"""Signatures of packaged models, by OpenSSF's model-signing: nothing else imports it.

A signature covers the names and bytes of all files of the folder. It lies beside the folder, so a model's bytes and
digest are those of an unsigned one. It differs each time, since the library draws random numbers for it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.durable.files import sha256_file
from align.errors import ConfigError, CorruptError
from align.services.tracking.registry import MODEL_ARTIFACT, Registry, Version

if TYPE_CHECKING:
    from align.services.tracking.tracker import Tracker

#: Files in PEM: the private key that `align package` signs with, and the public one that others check with.
SIGN_WITH, TRUST = "ALIGN_SIGNING_KEY", "ALIGN_TRUSTED_KEY"
#: The file's name in the report of `align package`, and among the artifacts of a version's run.
SIGNATURE = "model.sig"
_ARTIFACT = "signature"
#: The tag of a version that names the signature's bytes.
SIGNATURE_DIGEST = "align.signature_digest"
_TODO = f"set {SIGN_WITH}, then `dvc repro -s -f package` and `align register`"
#: A line of a manifest takes some 300 bytes; a package has a hundred files.
_MAX_BYTES = 16 << 20


def sign(model: Path, signature: Path) -> bool:
    """Signs a folder if the environment names a key; returns whether it did.

    Raises:
        ConfigError: the key is not one of an elliptic curve, or model-signing is not installed.
    """
    if not os.environ.get(SIGN_WITH):
        return False
    _with_key(SIGN_WITH).sign(model, signature)
    return True


def is_required() -> bool:
    """Whether the environment names a key that models have to be signed with."""
    return bool(os.environ.get(TRUST))


def require_signed(model: Path, signature: Path, what: str | None = None) -> None:
    """Checks a folder, if the environment names a key.

    Args:
        model: the folder.
        signature: its file.
        what: the folder's name in messages.

    Raises:
        CorruptError: it is not signed with this key, or its files are not those that were signed.
        ConfigError: as `sign`.
    """
    if not is_required():
        return
    named = what or str(model)
    if not signature.is_file():
        raise CorruptError(f"{named}: there is no signature ({signature}), and {TRUST} asks for one: {_TODO}")
    if signature.stat().st_size > _MAX_BYTES:
        raise CorruptError(f"{named}: {signature} is too large to be a signature")
    config = _with_key(TRUST)
    try:
        config.verify(model, signature)
    except Exception as error:  # noqa: BLE001 - hostile bytes: the library raises errors of any type
        reason = " ".join(str(error).split())[:300] or "it is not by this key"
        raise CorruptError(f"{named}: its signature does not hold ({reason}): {_TODO}") from None


def log_signature(tracker: Tracker, version: Version, signature: Path) -> None:
    """Keeps a signature with a version, if there is one that it does not have."""
    if signature.is_file() and version.tags.get(SIGNATURE_DIGEST) != sha256_file(signature):
        tracker.log_text(version.run_id, signature.read_text("utf-8"), f"{_ARTIFACT}/{SIGNATURE}")
        tracker.registry.set_version_tags(version, {SIGNATURE_DIGEST: sha256_file(signature)})


def require_signed_version(registry: Registry, version: Version, model: Path | None = None) -> None:
    """Checks a registered model, if the environment names a key.

    Args:
        registry: the version's.
        version: it.
        model: its files where they were fetched; None: they are fetched.

    Raises:
        CorruptError, ConfigError: as `require_signed`.
        ServiceError: MLflow is unavailable or refuses.
    """
    if not is_required():
        return
    with tempfile.TemporaryDirectory(prefix="align-signature-") as scratch:
        folder = Path(scratch)
        if SIGNATURE_DIGEST in version.tags:
            folder = registry.download(version, _ARTIFACT, folder)
        if model is None:
            model = registry.download(version, MODEL_ARTIFACT, Path(scratch))
        require_signed(model, folder / SIGNATURE, f"{version.name} version {version.number}")


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(f"{SIGN_WITH} and {TRUST} need {error.name}: pip install 'align-mlops[signing]'") from None
    return model_signing


def _with_key(variable: str) -> Any:
    """The library's settings to sign, or to check, with the key that a variable names."""
    library, key = _library(), os.environ[variable]
    # covers no link, and includes files that git would keep in a folder
    every_file = library.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    try:
        if variable == SIGN_WITH:
            config = library.signing.Config().use_elliptic_key_signer(private_key=key)
        else:
            config = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
        return config.set_hashing_config(every_file)
    except Exception as error:  # noqa: BLE001 - OpenSSL's, and any at a key of another kind
        kind = "private" if variable == SIGN_WITH else "public"
        reason = (
            error.strerror if isinstance(error, OSError) else f"no {kind} key of curve P-256, P-384 or P-521 in PEM"
        )
        raise ConfigError(f"{variable}={key}: {reason}") from None
