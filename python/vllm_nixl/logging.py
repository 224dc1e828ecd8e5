"""NIXL's `logging` by name: loggers below "nixl", for clients that use them.

vllm_nixl itself does not use them.  Python's logging is imported with the
first logger.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

_FORMAT = (
    "%(asctime)s NIXL %(levelname)-7s %(filename)s:%(lineno)d %(message)s"
)
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_LEVELS = {
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "ERROR": "ERROR",
    "FATAL": "CRITICAL",
}

_is_set_up = False


def set_log_level_by_env(nixl_logger: logging.Logger) -> None:
    """Set the level given by NIXL_LOG_LEVEL, if it is a valid one."""
    wanted = os.environ.get("NIXL_LOG_LEVEL")
    if not wanted:
        return
    level = _LEVELS.get(wanted.upper())
    if level is not None:
        nixl_logger.setLevel(level)
    else:
        nixl_logger.warning(
            "NIXL_LOG_LEVEL must be one of %s, not %r",
            ", ".join(_LEVELS),
            wanted,
        )


def setup_logging() -> None:
    """Send records below "nixl" to stdout, from INFO on; once."""
    global _is_set_up
    if _is_set_up:
        return
    import logging
    import sys

    nixl_logger = logging.getLogger("nixl")
    if not nixl_logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(_FORMAT, _DATE_FORMAT))
        nixl_logger.addHandler(handler)
        nixl_logger.propagate = False
    nixl_logger.setLevel(logging.INFO)
    set_log_level_by_env(nixl_logger)
    _is_set_up = True


def get_logger(name: str) -> logging.Logger:
    """The logger "nixl.<name>", without leading underscores of the name."""
    import logging

    setup_logging()
    return logging.getLogger(f"nixl.{name.lstrip('_')}")
