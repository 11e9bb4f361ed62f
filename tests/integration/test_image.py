"""infra/Dockerfile without Docker: its steps in an empty folder, and the programs of the image in what they made."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.compose import image_environment
from tests.support.small_data import jpeg

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # installs the image's environment
DOCKERFILE = ROOT / "infra/Dockerfile"
HOME = "/opt/align"
#: Needs root, and another system than this one.
SYSTEM = "apt-get"


def instructions():
    """(instruction, arguments) in order; continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def is_sent(name):
    """Whether a file is in the build's context: the last line of infra/Dockerfile.dockerignore that fits decides."""
    wanted = True
    for line in (ROOT / "infra/Dockerfile.dockerignore").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").replace("**/", "*")
            if any(fnmatch.fnmatch(each, pattern) for each in (name, *map(str, Path(name).parents))):
                wanted = line.startswith("!")
    return wanted


class Image:
    """The image's folder, and the variables that its containers have."""

    def __init__(self, root):
        self.home, self.project = root / "opt/align", root / "project"
        # A login on a machine with Python and git, and none of this checkout's environment; pip's own settings stay.
        python = Path(sys.base_prefix) / "bin"
        self.bare = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        self.bare |= {"PATH": f"{python}:/usr/local/bin:/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8"}
        self.steps = 0
        folder, arguments = root, dict[str, str]()
        for word, rest in instructions():
            if word == "WORKDIR":
                folder = root / rest.lstrip("/")
                folder.mkdir(parents=True, exist_ok=True)
            elif word == "ARG":
                arguments |= dict([rest.replace('"', "").split("=", 1)])
            elif word == "COPY":
                self._copy(rest.split(), folder)
            elif word == "RUN" and SYSTEM not in rest:
                self.steps += 1
                env = self.bare | arguments
                done = subprocess.run(
                    ["sh", "-c", rest], cwd=folder, env=env, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"

    def _copy(self, words, folder):
        *sources, target = words
        for source in sources:
            there = [path for path in (ROOT / source, *(ROOT / source).rglob("*")) if path.is_file()]
            found = [name for name in (str(path.relative_to(ROOT)) for path in there) if is_sent(name)]
            assert found, f"COPY {source}: not in the context"
            for name in found:
                inside = (
                    Path(target, Path(name).name) if name == source else Path(target, Path(name).relative_to(source))
                )
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / inside)

    def run(self, *command):
        """A container's command, through the entrypoint."""
        env = {key: value.replace(HOME, str(self.home)) for key, value in image_environment().items()}
        env |= {"PATH": env["PATH"].replace("$PATH", self.bare["PATH"]), "ALIGN_SECRETS": str(self.project / "none")}
        env |= {"HOME": str(self.project), "DVC_SITE_CACHE_DIR": str(self.project / "dvc")}
        [entrypoint] = [rest for word, rest in instructions() if word == "ENTRYPOINT"]
        words = [word.replace(HOME, str(self.home)) for word in shlex.split(entrypoint.strip("[]").replace(",", " "))]
        words += command
        return subprocess.run(
            words, cwd=self.project, env=env, capture_output=True, text=True, check=False, timeout=300
        )

    def files(self):
        """Every file of the image -> when it was changed."""
        return {str(path): path.stat().st_mtime_ns for path in self.home.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    yield Image(root)
    shutil.rmtree(root)  # gigabytes


def test_the_programs_of_the_image_run_and_write_nothing_into_it(image):
    assert image.steps == 1
    before = image.files()
    (image.project / "photos").mkdir()
    (image.project / "photos/red fox.jpg").write_bytes(jpeg(0))
    (image.project / "photos/captions.csv").write_text("file,text\nred fox.jpg,a red fox in the snow\n")
    [command] = [rest for word, rest in instructions() if word == "CMD"]
    for words in (
        shlex.split(command.strip("[]").replace(",", " ")),
        ["prefect", "version"],
        ["mlflow", "--version"],
        ["dvc", "version"],
        ["align", "init", "mine", "--profile", "photographs", "--set", "paths.archive=photos"],
    ):
        done = image.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    assert (image.project / "mine/dvc.yaml").is_file()
    # Compiled in the image, as containers cannot: what they import is never compiled again.
    assert image.files() == before
    assert all(
        any(f"/{name}/__pycache__/" in path for path in before) for name in ("torch", "mlflow", "align", "flows")
    )


def test_the_image_has_what_the_lock_pins(image):
    done = image.run("python", "-m", "pip", "list", "--format=freeze")
    lines = [line.partition("==") for line in done.stdout.splitlines()]
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in lines}
    locked = re.findall(r"^([\w.-]+)==(\S+) ((?:; .*)?)\\$", (ROOT / "requirements.lock").read_text("utf-8"), re.M)
    plain = {name: version for name, version, condition in locked if not condition}
    assert len(plain) > 200
    assert {name for name in plain if installed.get(name) != plain[name]} == set()
    assert "torch" in installed


def test_the_image_has_no_secrets_data_or_tests(image):
    assert is_sent("infra/compose.yaml") and is_sent("align/cli.py") and is_sent(".dvc/config")
    for name in (
        "infra/secrets/PGPASSWORD",
        "infra/.env",
        ".dvc/config.local",
        "align/__pycache__/cli.pyc",
        "data/raw/a",
    ):
        assert not is_sent(name), name
    names = {str(path.relative_to(image.home)) for path in image.home.rglob("*") if ".venv" not in path.parts}
    assert not any(name.startswith(("infra/secrets", "infra/.env", "tests", ".git/", "data/sample")) for name in names)
    assert "infra/deploy.py" in names and os.access(image.home / "infra/entrypoint.sh", os.X_OK)
