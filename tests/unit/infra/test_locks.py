"""requirements.lock and infra/locks: everything by hash."""

import re

from tests.support import ROOT


def test_everything_locked_has_a_hash_and_no_address():
    for lock in (ROOT / "requirements.lock", *sorted((ROOT / "infra/locks").glob("*.txt"))):
        text = lock.read_text("utf-8")
        for line in text.splitlines():
            assert re.fullmatch(r"#.*|[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
