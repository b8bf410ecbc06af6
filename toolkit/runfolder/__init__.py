"""Run folders: paths, atomic writes, locks, resume, stop signals, logs and versions."""

from toolkit.runfolder.files import (
    append_line,
    flush_folder,
    from_json,
    read_json,
    read_lines,
    remove_partial_line,
    write_json,
    write_text,
)
from toolkit.runfolder.folder import (
    EXPORT,
    SCHEMA_VERSION,
    TRAINING_STAGES,
    Record,
    RunFolder,
    check_schema,
    current_weights,
    find_run,
    find_weights,
    is_run,
)
from toolkit.runfolder.logs import LOGGER, PlainFormatter, hide_secrets
from toolkit.runfolder.process import StopRequest, is_main_process, rank, world_size
from toolkit.runfolder.progress import Progress, format_duration, no_progress
from toolkit.runfolder.start import RunSession, RunState, check_fingerprints, read_state, reopen_run, start_run
from toolkit.runfolder.versions import TESTED_VERSIONS, installed_versions, now, untested_versions
from toolkit.runfolder.weights import Exported, find_exported, locate_weights, outdated

__all__ = [
    "EXPORT",
    "LOGGER",
    "SCHEMA_VERSION",
    "TESTED_VERSIONS",
    "TRAINING_STAGES",
    "Exported",
    "PlainFormatter",
    "Progress",
    "Record",
    "RunFolder",
    "RunSession",
    "RunState",
    "StopRequest",
    "append_line",
    "check_fingerprints",
    "check_schema",
    "current_weights",
    "find_exported",
    "find_run",
    "find_weights",
    "flush_folder",
    "format_duration",
    "from_json",
    "hide_secrets",
    "installed_versions",
    "is_main_process",
    "is_run",
    "locate_weights",
    "no_progress",
    "now",
    "outdated",
    "rank",
    "read_json",
    "read_lines",
    "read_state",
    "remove_partial_line",
    "reopen_run",
    "start_run",
    "untested_versions",
    "world_size",
    "write_json",
    "write_text",
]
