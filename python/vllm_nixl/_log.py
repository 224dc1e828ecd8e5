"""The logger "vllm_nixl": the C library's lines in Python's logging.

Imported with the first line of the log, and by the first agent if the program
uses logging, so that programs that do not log never import logging.
"""

from __future__ import annotations

import atexit
import logging
import sys
from os import getpid

from . import _core

_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"

logger = logging.getLogger("vllm_nixl")


class _Stderr(logging.Handler):
    """Writes a line as the C library does, if the program has no handler."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None or _has_handler(self):
            return
        try:
            sys.stderr.write(_format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _has_handler(but: logging.Handler) -> bool:
    """Is there a handler, other than this one, that gets our records?"""
    source: logging.Logger | None = logger
    while source is not None:
        if any(handler is not but for handler in source.handlers):
            return True
        source = source.parent if source.propagate else None
    return False


_formatter = logging.Formatter()


def _format(record: logging.LogRecord) -> str:
    """The format of vnx_log_format(), include/vnx/log.h."""
    date = _formatter.formatTime(record, _DATE_FORMAT)
    agent = getattr(record, "agent", None)
    text = (
        f"{date}.{int(record.msecs):03d} {record.levelname} "
        f"vllm_nixl[{record.process}]{f' {agent}' if agent else ''}: "
        f"{record.getMessage()}"
    )
    if record.exc_info:
        text += "\n" + _formatter.formatException(record.exc_info)
    return text


def emit(
    level: int,
    time_ns: int,
    thread: int,
    thread_name: str,
    agent: str | None,
    text: str,
) -> None:
    """Log a line of the C library."""
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(logger.name, level, "libvnx", 0, text, (), None)
    created = time_ns / 1e9
    record.relativeCreated += (created - record.created) * 1000
    record.created = created
    record.msecs = time_ns // 1_000_000 % 1000
    record.thread = thread
    record.threadName = thread_name
    record.__dict__["agent"] = agent
    logger.handle(record)


def set_level(level: int | str) -> None:
    """Set the logger's level and the C library's."""
    logger.setLevel(level)
    _core._log_set_level(logger.getEffectiveLevel())


_flushes_in = 0  # the process that flushes at the end of its multiprocessing


def follow() -> None:
    """Make the C library log what the program's loggers let through."""
    global _flushes_in
    _core._log_set_level(logger.getEffectiveLevel())
    # A child of multiprocessing ends without calling atexit's functions.
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _flushes_in != getpid():
        _flushes_in = getpid()
        util.Finalize(None, _core._log_flush, exitpriority=0)


def _set_up() -> None:
    logger.addHandler(_Stderr())
    level = _core._log_level()
    if level is not None and logger.level == logging.NOTSET:
        logger.setLevel(level)
    # Called before logging.shutdown(), which was registered before.
    atexit.register(_core._log_flush)


_set_up()
