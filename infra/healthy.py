"""A container's health check: exit code 0 if a server answers 200, else 1 and one line.

    python infra/healthy.py http://127.0.0.1:5000/health

The image has no curl, and a command of the package would import too much to run every ten seconds.
"""

from __future__ import annotations

import sys
import urllib.request


def main(url: str) -> int:
    """Asks once, and for five seconds at most."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:  # an HTTP status that says so is one, too
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
