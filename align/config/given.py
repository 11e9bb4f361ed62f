"""A file or folder that was made elsewhere, with its digest: a stage starts from it.

DVC does not track it. Its digest is a parameter, so another one makes the stage stale, and a changed one is refused.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from align.config.params import Strict
from align.config.paths import PathField

#: Hex sha256.
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Given(Strict):
    """A file, or a folder whose one file of weights or of words has the digest."""

    path: PathField
    sha256: Digest
