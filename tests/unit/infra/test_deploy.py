"""infra/deploy.py: what a server that is not ready is told as."""

import os
import subprocess
import sys

from tests.support import ROOT
from tests.support.odd_server import answering


def test_a_server_that_is_busy_is_one_line():
    with answering(lambda _: (503, {}, b"busy")) as url:
        here = os.environ | {"PREFECT_API_URL": f"{url}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
        done = subprocess.run([sys.executable, "infra/deploy.py"], cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("align: error: Prefect's server did not say what is deployed: ")
    assert "503" in done.stderr and done.stderr.count("\n") == 1, done.stderr
