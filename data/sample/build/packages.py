"""Fetches the packages with their own clients, by name and version, and unpacks them.

Nothing is installed: the Debian packages are unpacked into a folder, the npm ones are packed tarballs.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

DEBIAN = {
    "openclipart-svg": "1:0.18+dfsg-19",
    "openclipart-png": "1:0.18+dfsg-19",
}
NPM = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/twemoji": "1.2.5",
    "openmoji": "17.0.0",
    "emojibase-data": "17.0.0",
}


def obtain(folder: Path) -> None:
    """Puts every package into ``folder``; an existing one stays as it is.

    Args:
        folder: receives ``debian/`` (one merged tree) and ``npm/NAME/`` (one per package).

    Raises:
        SystemExit: a package client is missing or failed; the message names the package.
    """
    debian, npm = folder / "debian", folder / "npm"
    for name, version in DEBIAN.items():
        marker = debian / f".{name}"
        if not marker.exists():
            debian.mkdir(parents=True, exist_ok=True)
            _call(["apt-get", "download", f"{name}={version}"], debian, name)
            archive = next(debian.glob(f"{name}_*.deb"))
            _call(["dpkg", "-x", archive.name, "."], debian, name)
            archive.unlink()
            marker.touch()
    for name, version in NPM.items():
        target = npm / name.rsplit("/", 1)[-1]
        if not target.exists():
            npm.mkdir(parents=True, exist_ok=True)
            _call(["npm", "pack", "--silent", f"{name}@{version}"], npm, name)
            packed = next(npm.glob("*.tgz"))
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(packed) as tar:
                tar.extractall(partial, filter="data")
            packed.unlink()
            (partial / "package").rename(target)
            partial.rmdir()


def _call(command: list[str], folder: Path, package: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"cannot obtain package {package}: {error}") from error
