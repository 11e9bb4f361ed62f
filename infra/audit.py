"""`make audit`: secrets in the files of the repository, a bill of materials, known vulnerabilities of its packages.

The first two need no network. Vulnerabilities are asked of a database on the web: where it does not answer,
or knows nothing about a package, this says so and ends with exit code 3. Exit code 1 where something is found.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from detect_secrets import SecretsCollection
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.settings import transient_settings
from packageurl import PackageURL
from packaging.requirements import Requirement

from align.durable.files import write_text
from align.services.git import git

ROOT = Path(__file__).parents[1]
#: In the format of CycloneDX.
BILL = Path(".align/bill-of-materials.cdx.json")
FOUND, CANNOT_ASK = 1, 3

#: Detectors that judge by a word nearby, by form or by entropy. The others look for keys of known services.
_GUESSING = frozenset({
    "Basic Auth Credentials", "Secret Keyword", "Hex High Entropy String", "Base64 High Entropy String",
})  # fmt: skip
#: Hashes, and the tests' passwords: there the guessing detectors find nothing else.
_NOT_GUESSED = ("requirements.lock", "infra/locks/", "data/sample/", "tests/")
#: Without those that ask the service whether a key works.
_FILTERS = (
    "detect_secrets.filters.allowlist.is_line_allowlisted",
    *(
        f"detect_secrets.filters.heuristic.{name}"
        for name in (
            "is_sequential_string", "is_potential_uuid", "is_likely_id_string", "is_templated_secret",
            "is_prefixed_with_dollar_sign", "is_indirect_reference", "is_not_alphanumeric_string",
        )
    ),
)  # fmt: skip
#: No secret.
_IGNORED = "Public IP (ipv4)"
#: Published outside of the package index, so the databases do not know their local versions (2.13.0+cpu).
_OURS = "align-mlops"
_LOCAL_VERSIONS = frozenset({"torch", "torchvision", _OURS})
_SERVICES = ("osv", "pypi")
_TIMEOUT_S = 600


def repository_files(root: Path) -> list[str]:
    """Tracked files, and new ones that git does not ignore."""
    return [name for name in git(root, "ls-files", "-co", "--exclude-standard", "-z").split("\0") if name]


def secrets_in(root: Path, names: list[str]) -> Iterator[str]:
    """`file:line: what` of everything that looks like a secret."""
    plugins = [{"name": plugin.__name__} for plugin in get_mapping_from_secret_type_to_class().values()]
    with transient_settings({"plugins_used": plugins, "filters_used": [{"path": path} for path in _FILTERS]}):
        for name in names:
            found = SecretsCollection(str(root))
            found.scan_file(name)
            for _, secret in found:
                guessed = secret.type in _GUESSING and name.startswith(_NOT_GUESSED)
                if not guessed and secret.type != _IGNORED:
                    yield f"{name}:{secret.line_number}: {secret.type}"


def bill_of_materials(lock: str) -> str:
    """What this installation is made of, as CycloneDX's JSON: the same text for the same lock, Python and torch.

    Args:
        lock: the text of requirements.lock. What is installed beside it is named without hashes.
    """
    parts = []
    for entry in re.split(r"^(?=[^\s#])", lock, flags=re.M)[1:]:
        line, *hashes = entry.split(" \\\n")
        pinned = Requirement(line)
        if pinned.marker is None or pinned.marker.evaluate():
            pin = str(pinned.specifier).removeprefix("==")
            parts.append(_component(pinned.name, pin, re.findall(r"sha256:([0-9a-f]{64})", "".join(hashes))))
    parts += [_component(name, found) for name in sorted(_LOCAL_VERSIONS - {_OURS}) if (found := _installed(name))]
    whole = Component(name=_OURS, version=_installed(_OURS), type=ComponentType.APPLICATION, bom_ref=_OURS)
    bom = Bom(components=parts, metadata=BomMetaData(component=whole))
    bom.register_dependency(whole, parts)
    bom.metadata.timestamp = None
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(sorted(str(part.purl) for part in parts)))
    written = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return f"{written}\n"


def _component(name: str, pin: str, digests: Iterable[str] = ()) -> Component:
    purl = PackageURL("pypi", None, name, pin)
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in digests]
    return Component(name=name, version=pin, purl=purl, bom_ref=str(purl), hashes=hashes)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def vulnerabilities(report: str) -> tuple[list[str], list[str], int]:
    """(vulnerabilities, packages that the service does not know, number of those it knows) of pip-audit's report."""
    found, unknown, num_known = [], [], 0
    for package in json.loads(report)["dependencies"]:
        name = package["name"]
        if "skip_reason" in package:
            unknown += [name] if name not in _LOCAL_VERSIONS else []
            continue
        num_known += 1
        for entry in package["vulns"]:
            fixed = ", ".join(entry["fix_versions"]) or "no version yet"
            found.append(f"{name} {package['version']}: {entry['id']}, fixed in {fixed}")
    return found, unknown, num_known


def ask(service: str) -> str | None:
    """The report of pip-audit on this environment; None where the service cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run(
        [*command, "-f", "json", "-s", service], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    return done.stdout if done.stdout.startswith("{") else None


def main() -> int:
    """Prints what is found."""
    secrets = list(secrets_in(ROOT, repository_files(ROOT)))
    print("\n".join(secrets) or "secrets: none in the repository's files (their history is not read)")
    write_text(ROOT / BILL, bill_of_materials((ROOT / "requirements.lock").read_text("utf-8")))
    print(f"bill of materials: {BILL}")
    for service in _SERVICES:
        report = ask(service)
        if report is None:
            continue
        found, unknown, num_known = vulnerabilities(report)
        print("\n".join(found) or f"vulnerabilities: none known to {service} in {num_known} packages")
        if unknown:
            print(f"vulnerabilities: {service} cannot say for {len(unknown)} packages: {', '.join(unknown)}")
        return FOUND if secrets or found else CANNOT_ASK if unknown else 0
    print(f"vulnerabilities: not asked, {' and '.join(_SERVICES)} cannot be reached; run it where there is a network")
    return FOUND if secrets else CANNOT_ASK


if __name__ == "__main__":
    sys.exit(main())
