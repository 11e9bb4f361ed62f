"""The lineage page that MLflow keeps with each version shows the aliases that the version has.

`align register`, `promote`, `rollback` and `champion` move aliases; the command line calls `follow_aliases` after each
of them. A tag of the version says what its page shows. So only pages that changed are drawn again, and the next call
draws what one call left undone because it was killed or could not draw. The alias has moved by then: nothing here
undoes that.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config import Params
from align.config.infrastructure import EngineConfig
from align.config.release import RegisterConfig
from align.display.console import say
from align.durable.locks import locked
from align.errors import AlignError, DataError
from align.services.tracking.registry import LINEAGE_PAGE, Version, aliases_of
from align.services.tracking.tracker import Tracker

if TYPE_CHECKING:
    from align.lineage.trace.pairs import Surroundings

#: The lock by which only one process of a checkout draws at a time, so that the last page is that of the last move.
LOCK = Path(".align/locks/lineage_pages")


def follow_aliases(params: Params) -> None:
    """Draws the pages of versions whose aliases moved. What fails is one line, a note on a command that succeeded."""
    name = params.section(RegisterConfig).model_name
    try:
        with locked(LOCK, "the lineage pages", lambda _line: None):
            registry = Tracker().registry
            aliases = registry.aliases(name)
            stale = [one for one in registry.versions(name) if one.run_id and _shown(one) != aliases_of(aliases, one)]
            left = _draw_all(params, stale) if stale else []
    except Exception as error:  # noqa: BLE001 - whatever fails, the alias has moved, and the command must say so
        left = [_in_words(error)]
    if left:
        say(f"note: a lineage page in MLflow does not show the aliases as they are: {'; '.join(left)}")


def _draw_all(params: Params, stale: Sequence[Version]) -> list[str]:
    """Draws pages; returns why some were left as they were."""
    from align.lineage.trace.models import Models
    from align.lineage.trace.trace import surroundings
    from align.lineage.versions.data_versions import DataVersions  # with what a trace needs: most calls draw nothing

    left = []
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as folder:
        versions = DataVersions(Path.cwd(), Path(folder))
        models = Models(stale[0].name)
        for version in stale:
            try:
                _draw(version, surroundings(params, versions, models))
            except Exception as error:  # noqa: BLE001 - as above, and the other pages can be drawn
                left.append(f"version {version.number}: {_in_words(error)}")
    return left


def _draw(version: Version, around: Surroundings) -> None:
    from align.lineage.trace.graph import missing
    from align.lineage.trace.page import as_page
    from align.lineage.trace.subject import of_version
    from align.lineage.trace.trace import log_page, trace

    words = f"{version.name}/{version.number}"
    graph = trace(words, of_version(version), around)
    if len(missing(graph)) > _read(version).get("missing", math.inf):
        raise DataError(
            f"links that its page has are not on this machine; where they are, `align trace {words} --log` draws it"
        )
    log_page(around.models, version, graph, as_page(graph))


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, AlignError) else f"{type(error).__name__}: {error}"


def _shown(version: Version) -> tuple[str, ...]:
    """The aliases that the page shows; empty if there is no page: a version that never had an alias needs none."""
    return tuple(_read(version).get("aliases", ()))


def _read(version: Version) -> Mapping[str, Any]:
    with suppress(ValueError):
        if isinstance(values := json.loads(version.tags.get(LINEAGE_PAGE, "")), dict):
            return values
    return {}
