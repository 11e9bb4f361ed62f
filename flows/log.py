"""Makes errors short: one line each."""

from __future__ import annotations

import logging

from align.errors import AlignError


class _OneLine(logging.Filter):
    """Drops the traceback of an AlignError: its message says what, where, and what to do next."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], AlignError):
            record.exc_info = None
        return True


def one_line_errors() -> None:
    """Makes Prefect log an AlignError as one line, without a traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _OneLine) for existing in logger.filters):
            logger.addFilter(_OneLine())
