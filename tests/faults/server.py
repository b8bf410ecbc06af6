"""The process of one thread that has imported everything and forks the commands. See `tests/faults/children.py`."""

import atexit
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from tests.faults.children import KillAt, Request

NOT_IMPORTED = (
    "toolkit.models.unsloth",
    "toolkit.models.vllm",
    "toolkit.__main__",
    "toolkit.diagnostics.probe_script",
    "toolkit.cli.demo_page",  # needs Gradio
)
LIBRARIES = (
    "accelerate",
    "datasets",
    "diffusers",
    "matplotlib.figure",
    "peft",
    "PIL.Image",
    "pyarrow.parquet",
    "rich.progress",
    "safetensors.torch",
    "torch.utils.data",
    "transformers.models.gemma3",
    "trl",
)
"""Libraries that commands import late."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")

FOLDER_LAST = ("os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.rename")
"""Changes whose last argument is the descriptor of the folder of the path, or -1."""


def preload() -> None:
    """Import what commands import."""
    import torch

    torch.set_num_threads(1)
    import toolkit

    for found in pkgutil.walk_packages(toolkit.__path__, "toolkit.", onerror=lambda name: None):
        if not found.name.startswith(NOT_IMPORTED):
            importlib.import_module(found.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def run(request: Request) -> NoReturn:
    """Run a command in this child, and exit with its status."""
    os.setsid()
    outputs = {name: os.open(request.outputs / name, os.O_WRONLY | os.O_CREAT) for name in ("stdout", "stderr")}
    for number, (_, descriptor) in enumerate(outputs.items(), 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(request.folder)
    os.environ.update(request.environment)
    tempfile.tempdir = None  # that of the environment
    sys.argv = ["toolkit", *request.argv]
    log = os.open(request.outputs / "events", os.O_WRONLY | os.O_CREAT)
    if request.before is not None:
        request.before()
    for limit, values in request.limits.items():
        resource.setrlimit(limit, values)
    from toolkit.cli import main

    (request.outputs / "begun").touch()
    watch(log, request.kill)
    main(list(request.argv))


def watch(log: int, kill: KillAt | None) -> None:
    """Record the changes of files, and send the signal just before one of them."""
    seen = 0

    def note(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            flags = arguments[2]
            if not (isinstance(flags, int) and flags & WRITING) or isinstance(arguments[0], int):
                return
        elif event not in CHANGES:
            return
        seen += 1
        two = event in ("os.rename", "os.link", "os.symlink")
        folder = arguments[-1] if event in FOLDER_LAST else -1
        path = absolute(arguments[1] if two else arguments[0], folder)
        with suppress(OSError):  # above the limit of a file's size
            os.write(log, f"{event} {path}\n".encode("utf-8", "replace"))
        if kill is not None and seen == kill.event:
            os.kill(os.getpid(), kill.signal)

    sys.addaudithook(note)


def absolute(path: object, folder: object) -> str:
    """Return the path of a change. Some functions take one that is relative to an open folder."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    if isinstance(folder, int) and folder >= 0:
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)  # noqa: PTH115, PTH118
    return os.path.abspath(text)  # noqa: PTH100


def serve(connection: Connection) -> None:
    """Fork a command for each request, and return the status for each process id, until the other side closes."""
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if isinstance(message, int):
            _, status = os.waitpid(message, 0)
            connection.send(os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            run_and_exit(message)
        connection.send(pid)


def run_and_exit(request: Request) -> NoReturn:
    """End as the interpreter ends a program: with the exit code, or with a traceback."""
    try:
        run(request)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001  # what the interpreter does with it
        sys.excepthook(*sys.exc_info())
        code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # here the harness ends the process, and not the toolkit
    finish(code)


def finish(code: int) -> NoReturn:
    """Do what the interpreter does at the end, without the slow removal of all modules."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    preload()
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        sys.exit("the process has more than one thread, so its children could wait for a lock for ever")
    gc.collect()
    gc.freeze()
    talk = Connection(int(sys.argv[1]))
    talk.send("ready")
    serve(talk)
