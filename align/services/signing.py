"""Signatures of registered models, by OpenSSF's model-signing: nothing else imports it.

A signature covers the names and bytes of all files of the packaged model. It lies beside the model among the artifacts
of the version's run, so a model's bytes and digest are those of an unsigned one.
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

#: Files in PEM: the private key that `align register` signs with, and the public one that others check with.
SIGN_WITH, TRUST = "ALIGN_SIGNING_KEY", "ALIGN_TRUSTED_KEY"
#: Among the artifacts, and the tag of a version that has one.
_ARTIFACT, _FILE, SIGNATURE_DIGEST = "signature", "model.sig", "align.signature_digest"
#: A line of a manifest takes some 300 bytes; a package has a hundred files.
_MAX_BYTES = 16 << 20


def sign(tracker: Tracker, version: Version, model: Path) -> None:
    """Signs a registered model, whose files are in a folder, if the environment names a key. Raises ConfigError."""
    if not os.environ.get(SIGN_WITH):
        return
    with tempfile.TemporaryDirectory(prefix="align-signature-") as scratch:
        signature = Path(scratch) / _FILE
        _with_key(SIGN_WITH).sign(model, signature)
        tracker.log_text(version.run_id, signature.read_text("utf-8"), f"{_ARTIFACT}/{_FILE}")
        tracker.registry.set_version_tags(version, {SIGNATURE_DIGEST: sha256_file(signature)})


def is_required() -> bool:
    """Whether the environment names a key that models have to be signed with."""
    return bool(os.environ.get(TRUST))


def require_signed(registry: Registry, version: Version, model: Path | None = None) -> None:
    """Checks a registered model, if the environment names a key.

    Args:
        registry: the version's.
        version: it.
        model: its files where they were fetched; None: they are fetched.

    Raises:
        CorruptError: it is not signed with this key, or its files are not those that were signed.
        ConfigError: the key is not one of an elliptic curve, or model-signing is not installed.
        ServiceError: MLflow is unavailable or refuses.
    """
    if not is_required():
        return
    named, todo = f"{version.name} version {version.number}", f"set {SIGN_WITH}, then `align register`"
    if SIGNATURE_DIGEST not in version.tags:
        raise CorruptError(f"{named}: there is no signature, and {TRUST} asks for one: {todo}")
    with tempfile.TemporaryDirectory(prefix="align-signature-") as scratch:
        signature = registry.download(version, _ARTIFACT, Path(scratch)) / _FILE
        model = model or registry.download(version, MODEL_ARTIFACT, Path(scratch))
        config = _with_key(TRUST)
        if signature.is_file() and signature.stat().st_size > _MAX_BYTES:
            raise CorruptError(f"{named}: its signature is too large to be one: {todo}")
        try:
            config.verify(model, signature)
        except Exception as error:  # noqa: BLE001 - hostile bytes: the library raises errors of any type
            reason = " ".join(str(error).split())[:300] or "it is not by this key"
            raise CorruptError(f"{named}: its signature does not hold ({reason}): {todo}") from None


def _with_key(variable: str) -> Any:
    """The library's settings to sign, or to check, with the key that a variable names."""
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(f"{SIGN_WITH} and {TRUST} need {error.name}: pip install 'align-mlops[signing]'") from None
    library: Any = model_signing
    key, kind = os.environ[variable], "private" if variable == SIGN_WITH else "public"
    try:
        if kind == "private":
            config = library.signing.Config().use_elliptic_key_signer(private_key=key)
        else:
            config = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
        # covers no link, and includes files that git would keep in a folder
        return config.set_hashing_config(library.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False))
    except OSError as error:
        raise ConfigError(f"{variable}={key}: {error.strerror}") from None
    except Exception:  # noqa: BLE001 - OpenSSL's, and any at a key of another kind
        raise ConfigError(f"{variable}={key}: no {kind} key of curve P-256, P-384 or P-521 in PEM") from None
