"""`toolkit demo`: serve a run's model on a page of this machine, until Ctrl-C."""

import ipaddress
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import ModelChoice, RunPath

LOOPBACK = "127.0.0.1"

UPLOAD_MB = 256
"""Largest uploaded file in MB. A DICOM file of many frames has some hundred."""

KEPT_SECONDS, CHECK_SECONDS = 3600, 60
"""Seconds after which an uploaded file is deleted while the page is served, and seconds between two checks."""


def demo(
    run_folder: RunPath,
    model: ModelChoice = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any other than the default is reachable from other machines.")
    ] = LOOPBACK,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free port from 7860 on.")
    ] = None,
) -> None:
    """Serve a run's model on a small web page: upload an image (also DICOM), type a question, see the answer.

    The page is for this machine alone. It stores nothing, and it is no medical device. Ctrl-C ends it.
    """
    from toolkit.cli.progress import show_progress
    from toolkit.errors import Interrupted, MissingExtraError, warn
    from toolkit.pipeline.existing_run import open_for_inference
    from toolkit.runfolder import StopRequest

    if find_spec("gradio") is None:
        raise MissingExtraError("gradio", "demo", "toolkit demo")
    with show_progress(), StopRequest() as stop, tempfile.TemporaryDirectory(prefix="toolkit-demo-") as uploads:
        if not _is_loopback(host):
            rule = "the page should be on a loopback address, because it has no login and no encryption"
            warn("demo.host_not_loopback", rule, place="--host", value=host, remedy=f"Use --host {LOOPBACK}.")
        run, weights = open_for_inference(run_folder, model)
        from toolkit.evaluation.predictor import load_predictor  # after Unsloth is imported

        predictor = load_predictor(weights or run.path)
        stop.check("nothing was served")
        _configure(Path(uploads))
        from toolkit.cli.demo_page import build_page, serve

        page = build_page(predictor, run.name, (CHECK_SECONDS, KEPT_SECONDS))
        url = serve(page, host, port, UPLOAD_MB)
        print(f"{run.name}: {url} (Ctrl-C ends it)", flush=True)
        while not stop.requested:
            time.sleep(0.2)
        page.close(verbose=False)
    raise Interrupted(stop.number or 0, "The page is closed, and uploaded files are deleted", "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _configure(uploads: Path) -> None:
    """Set what Gradio reads from the environment when it is imported: no telemetry, and the folder of uploads."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
