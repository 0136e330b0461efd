"""Log lines as the short sentences of a command line: without time and traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class BriefHandler(logging.Handler):
    """Prints warnings and errors as `sigma9: message` on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        from sigma9_core.log import redacted

        print(f"sigma9: {redacted(record.getMessage())}", file=sys.stderr)


@contextmanager
def brief_log() -> Iterator[None]:
    """Print what Sigma9's loggers say from warnings on, and nothing else of it."""
    logger = logging.getLogger("sigma9")
    handler = BriefHandler(logging.WARNING)
    spread, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = spread
