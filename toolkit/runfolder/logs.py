"""Log records in log.txt, without tokens and keys."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.errors import warn

LOGGER = "toolkit"
"""Name of the package's logger. INFO is shown in the terminal, DEBUG is written to log.txt only."""

HIDDEN = "[hidden]"
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_API_KEY", "OPENAI_API_KEY")
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:sk|ghp|gho|glpat|xox[abp])[-_][A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}=*|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_NAMED_SECRET = re.compile(
    r"(?i)\b(\w*(?:api[_-]?key|access[_-]?token|password|secret)\w*[\"']?\s*[=:]\s*[\"']?)[^\s\"',]+"
)


def hide_secrets(text: str) -> str:
    """Return ``text`` without Hub tokens, API keys, passwords in URLs and the values of ``SECRET_VARIABLES``."""
    for variable in SECRET_VARIABLES:
        value = os.environ.get(variable, "")
        if len(value) >= 8:
            text = text.replace(value, HIDDEN)
    return _NAMED_SECRET.sub(rf"\1{HIDDEN}", _SECRET.sub(HIDDEN, text))


class PlainFormatter(logging.Formatter):
    """Format a record as time, level (except INFO), message, code and traceback, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several lines if the record has a traceback."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        text = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {level}{record.getMessage()}"
        text += f" [{record.problem.code}]" if hasattr(record, "problem") else ""
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return hide_secrets(text)


class _LogFile(logging.FileHandler):
    """A log file whose disk may be full. The error that stops the run is printed, and not that of each log line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")  # half of a surrogate pair in a message
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the first line that cannot be written, instead of printing a traceback for each one."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True  # first, because the warning comes back to this handler
            rule, remedy = "the log should be writable", "Free disk space."
            warn("run.log_not_written", rule, place=self.baseFilename, value=error.strerror, remedy=remedy)

    def close(self) -> None:
        """Close the file. Lines that are lost have been reported."""
        with suppress(OSError):
            super().close()


def _open_log(path: Path) -> logging.Handler:
    """Return a handler that appends to ``path``. Nothing is written to a folder, or to a user's file behind a link."""
    behind_link = path.is_symlink() and not path.is_char_device()
    if behind_link or path.is_dir():
        rule, remedy = "the log should be a regular file. This session is not logged", "Move it to another place."
        warn("run.log_not_written", rule, place=path, value="a link" if behind_link else "a folder", remedy=remedy)
        return logging.NullHandler()
    return _LogFile(path)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append records of ``LOGGER`` from DEBUG, and warnings of other libraries, to ``path`` while the block runs."""
    own, others = logging.getLogger(LOGGER), logging.getLogger()
    handler = _open_log(path)
    handler.setFormatter(PlainFormatter())
    handler.addFilter(lambda record: record.name.partition(".")[0] == LOGGER or record.levelno >= logging.WARNING)
    level = own.level
    own.setLevel(logging.DEBUG)
    others.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        others.removeHandler(handler)
        own.setLevel(level)
        handler.close()
