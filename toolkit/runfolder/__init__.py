"""Run folders: paths, atomic writes, locks, resume, stop signals, logs and versions."""

from toolkit.runfolder.files import (
    append_line,
    flush_folder,
    read_json,
    read_lines,
    remove_partial_line,
    write_json,
    write_text,
)
from toolkit.runfolder.folder import EXPORT, TRAINING_STAGES, Record, RunFolder, current_weights, find_run, find_weights
from toolkit.runfolder.logs import LOGGER, PlainFormatter, hide_secrets
from toolkit.runfolder.process import StopRequest, is_main_process, rank, world_size
from toolkit.runfolder.progress import Progress, format_duration, no_progress
from toolkit.runfolder.start import check_fingerprints, read_state, reopen_run, start_run
from toolkit.runfolder.versions import TESTED_VERSIONS, installed_versions, now, untested_versions
from toolkit.runfolder.weights import Exported, find_exported, locate_weights, outdated

__all__ = [
    "EXPORT",
    "LOGGER",
    "TESTED_VERSIONS",
    "TRAINING_STAGES",
    "Exported",
    "PlainFormatter",
    "Progress",
    "Record",
    "RunFolder",
    "StopRequest",
    "append_line",
    "check_fingerprints",
    "current_weights",
    "find_exported",
    "find_run",
    "find_weights",
    "flush_folder",
    "format_duration",
    "hide_secrets",
    "installed_versions",
    "is_main_process",
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
