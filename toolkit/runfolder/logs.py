"""Log records in log.txt, without tokens and keys, and without what other libraries quote of rows and images."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import cast

from toolkit.errors import ToolkitError, warn
from toolkit.identifiers import FILE as IDENTIFIERS
from toolkit.identifiers import identifiers_in, private_opener, without_names
from toolkit.runfolder.output import free_name

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


def hide_values_of_libraries() -> None:
    """Hide what warnings and uncaught errors of other libraries quote, which can be names of patients.

    Such a text has names of files, values of DICOM elements and cells of tables. Each process calls this once.
    """
    warnings.formatwarning = _format_warning
    sys.excepthook = _print_exception
    if logging.lastResort is not None:  # prints records of libraries outside of a run
        logging.lastResort.setFormatter(PlainFormatter())


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {without_names(str(message))}\n"


def _print_exception(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    error.__traceback__ = at
    sys.stderr.write(hide_secrets(format_error(error)))


_OF_CODE = (NameError, AttributeError, TypeError, ImportError)
"""Errors whose messages quote names of the code, and not values."""


def format_error(error: BaseException) -> str:
    """Return the traceback of an error. Messages of errors that are not ours are without quoted texts and paths."""
    whole = traceback.TracebackException.from_exception(error)
    pending = [(whole, error)]
    while pending:
        part, of = pending.pop()
        if not isinstance(of, (ToolkitError, *_OF_CODE)):
            own = part._str  # type: ignore[attr-defined]  # there is no public way to change the message
            part._str = without_names(own)  # type: ignore[attr-defined]
        part.__notes__ = None
        for inner, cause in ((part.__cause__, of.__cause__), (part.__context__, of.__context__)):
            if inner is not None and cause is not None:
                pending.append((inner, cause))
    return "".join(whole.format())


class PlainFormatter(logging.Formatter):
    """Format a record as time, level (except INFO), message, code and traceback.

    It has no secrets. Records of other libraries have no quoted texts and paths, which can be names of patients.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several lines if the record has a traceback."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        message = record.getMessage()
        if record.name.partition(".")[0] not in (LOGGER, "py"):  # py.warnings has passed _format_warning
            message = f"{record.name}: {without_names(message)}"
        text = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {level}{message}"
        text += f" [{record.problem.code}]" if hasattr(record, "problem") else ""
        if record.exc_info:
            text += f"\n{format_error(record.exc_info[1])}" if record.exc_info[1] else ""
        return hide_secrets(text)


class _LogFile(logging.FileHandler):
    """A log file whose disk may be full. The error that stops the run is printed, and not that of each log line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")  # half of a surrogate pair in a message
        self._failed = False

    def _open(self) -> TextIOWrapper:
        stream = open(self.baseFilename, self.mode, encoding=self.encoding, opener=private_opener)  # noqa: SIM115
        return cast(TextIOWrapper, stream)

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


def _keep_damaged(file: Path, error: Exception) -> None:
    """Rename a damaged file with the names of hashed ids, and warn that later hashes have another key."""
    kept = free_name(file)
    with suppress(OSError):  # a folder without the rights. Then the new file cannot be written either
        file.rename(kept)
    rule = "the file should have the key and the names of this run's hashed ids. Ids of earlier sessions now differ"
    value = getattr(error, "strerror", None) or type(error).__name__
    remedy = f"Restore it if you have a copy. The damaged file is {kept.name}."
    warn("run.identifiers_damaged", rule, place=file, value=value, remedy=remedy)


def _names_unsaved(file: Path, error: OSError) -> None:
    rule = "the file should be writable. The names of this session's hashed ids are not stored"
    warn("run.identifiers_not_written", rule, place=file, value=error.strerror, remedy="Free disk space.")


@contextmanager
def hashed_names(folder: Path) -> Iterator[None]:
    """Hash ids with the key of a run while the block runs, and store their names in its ``IDENTIFIERS``."""
    names = folder / IDENTIFIERS
    with identifiers_in(names, partial(_keep_damaged, names), partial(_names_unsaved, names)):
        yield


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append records of ``LOGGER`` from DEBUG, and warnings of other libraries, to ``path`` while the block runs.

    Names of hashed ids are stored beside it.
    """
    hide_values_of_libraries()
    own, others = logging.getLogger(LOGGER), logging.getLogger()
    handler = _open_log(path)
    handler.setFormatter(PlainFormatter())
    handler.addFilter(lambda record: record.name.partition(".")[0] == LOGGER or record.levelno >= logging.WARNING)
    level = own.level
    own.setLevel(logging.DEBUG)
    others.addHandler(handler)
    logging.captureWarnings(True)
    try:
        with hashed_names(path.parent):
            yield
    finally:
        logging.captureWarnings(False)
        others.removeHandler(handler)
        own.setLevel(level)
        handler.close()
