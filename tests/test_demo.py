"""`toolkit demo` in headless Chromium, with real clicks: answers, boxes, probabilities, errors, and what it leaves."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.chromium import open_browser
from tests.helpers.cli import call
from tests.helpers.recipes import load_recipe
from tests.helpers.training import context_of, small_recipe
from toolkit.data.sample import Answer
from toolkit.evaluation.drawing import draw_shapes
from toolkit.evaluation.predictor import Predictor, load_predictor
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent
SECONDS = 1000
PATIENT = "Mustermann"

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed (pip install .[demo])")


@pytest.fixture(scope="module")
def detecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned to draw boxes."""
    shorter = ("sft.max_steps=40", "data.synthetic.train=400", "data.synthetic.test=20")
    folder = tmp_path_factory.mktemp("detecting")
    recipe = load_recipe(ROOT / "recipes" / "detect_tiny.toml", [*shorter, f"run.folder='{folder}'"])
    return run_recipe(recipe.model_copy(update={"evaluate": None, "export": None}), STAGES).folder


def untrained(folder: Path, task: str, kind: str, size: int) -> Path:
    """Return a run of the tiny model as it ships, which has read its rows."""
    synthetic = {"kind": kind, "train": 24, "test": 12, "size": size}
    recipe = small_recipe(folder, {"data": {"task": task, "synthetic": synthetic}, "model": {"max_tokens": 1024}}, task)
    with context_of(recipe.model_copy(update={"sft": None, "grpo": None})) as context:
        return context.run.path


@dataclass
class Served:
    """A page that `toolkit demo` serves in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    temporary: Path
    logged: list[str] = field(default_factory=list)

    def stop(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, logged = self.process.communicate(timeout=60)
        self.logged.append(logged)
        return self.process.returncode


@contextmanager
def serving(run: Path, temporary: Path, *options: str) -> Iterator[Served]:
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "toolkit", "demo", str(run), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, cwd=temporary, **pipes)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, process.communicate()[1]
        yield Served(found[0], process, temporary)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with open_browser() as browser:
        yield browser


@dataclass
class Desk:
    """A tab with the page, and what it requested."""

    page: "Page"
    requested: list[str]

    def upload(self, *files: Path) -> None:
        self.page.set_input_files("#images input[type=file]", [str(file) for file in files])
        for file in files:
            self.page.get_by_text(file.stem).first.wait_for()

    def submit(self) -> None:
        self.page.click("#submit")
        self.page.wait_for_selector("#answer [data-part]")

    def part(self, name: str) -> str:
        return self.page.locator(f"#answer [data-part={name}]").first.inner_text()

    def image(self) -> Any:
        """Return the pixels of the first image of the answer."""
        source = self.page.locator("#answer img").first.get_attribute("src")
        assert source is not None
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


@contextmanager
def opened(browser: "Browser", served: Served) -> Iterator[Desk]:
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    context.set_default_timeout(60 * SECONDS)
    requested: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: requested.append(request.url))
    page.goto(served.url)
    page.wait_for_selector("#submit")
    yield Desk(page, requested)
    context.close()


def drawn(predictor: Predictor, image: Path) -> tuple[Answer, Any, Any]:
    """Return an answer, and the pixels with and without what it names."""
    sample = predictor.question_sample(None, [image])
    answer = predictor.answer(sample)
    loaded = predictor.completer.prompts.images.fetch(sample.images[0])
    plain = np.asarray(draw_shapes(loaded, ()))
    return answer, np.asarray(draw_shapes(loaded, predictor.task.shapes(sample, answer))), plain


def write_dicom(image: Path, file: Path) -> Path:
    """Write a grey image as DICOM of 12 bits, with the name of a patient."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (pip install .[dicom])")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    values = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 16
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientName, data.PatientID = PATIENT, "4711"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = values.tobytes()
    data.save_as(file, enforce_file_format=True)
    return file


def images_of(run: Path) -> list[Path]:
    return sorted(file for file in (run / "synthetic").rglob("*") if file.suffix in (".png", ".jpg"))


@needs_gradio
@pytest.mark.slow
def test_boxes_of_a_png_and_a_dicom_file_are_drawn_as_the_predictor_finds_them(
    detecting: Path, tmp_path: Path, browser: "Browser"
) -> None:
    predictor = load_predictor(detecting)
    png = next(file for file in images_of(detecting) if predictor.task.shapes(*_answered(predictor, file)))
    dicom = write_dicom(png, tmp_path / "radiograph.dcm")
    with serving(detecting, tmp_path) as served:
        for file in (png, dicom):
            answer, expected, plain = drawn(predictor, file)
            with opened(browser, served) as desk:
                desk.upload(file)
                desk.submit()
                assert desk.part("completion") == answer.text
                assert (desk.image() == expected).all()
                assert PATIENT not in desk.page.content()
                assert "not a medical device" in desk.page.locator("[role=note]").inner_text()
                assert {url.split("/")[2] for url in desk.requested if not url.startswith("data:")} == {
                    served.url.split("/")[2]
                }
                if file == png:
                    assert answer.problem is None
                    assert (expected != plain).any()
                desk.page.screenshot(path=os.environ.get("DEMO_SCREENSHOTS", str(tmp_path)) + f"/{file.suffix[1:]}.png")
        assert served.stop() == 130
        assert list(tmp_path.glob("toolkit-demo-*")) == []
        with (
            pytest.raises(OSError),
            socket.create_connection(("127.0.0.1", int(served.url.rstrip("/").rpartition(":")[2]))),
        ):
            pass
        assert PATIENT not in "".join(served.logged)


def _answered(predictor: Predictor, file: Path) -> Any:
    sample = predictor.question_sample(None, [file])
    return sample, predictor.answer(sample)


@needs_gradio
@pytest.mark.slow
def test_class_probabilities_are_those_of_the_predictor(tmp_path: Path, browser: "Browser") -> None:
    run = untrained(tmp_path, "classify", "tissue", 64)
    file = images_of(run)[0]
    expected = load_predictor(run).predict(images=[file])
    with serving(run, tmp_path) as served, opened(browser, served) as desk:
        desk.upload(file)
        desk.submit()
        rows = desk.page.locator("#answer [data-part=probability]").all()
        found = {row.locator("th").inner_text(): float(row.get_attribute("data-value") or "nan") for row in rows}
        assert found == pytest.approx(expected.probabilities, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert desk.part("problem").endswith(expected.problem or "")
        desk.page.screenshot(path=os.environ.get("DEMO_SCREENSHOTS", str(tmp_path)) + "/classes.png")


@needs_gradio
@pytest.mark.slow
def test_a_typed_question_with_options_is_answered_and_errors_are_on_the_page(
    tmp_path: Path, browser: "Browser"
) -> None:
    run = untrained(tmp_path, "mcq", "chest", 64)
    file, question, options = images_of(run)[0], "How large is <the> heart? {{1}} ${2}", ["A. Normal", "B. Enlarged"]
    expected = load_predictor(run).predict(question, [file], options=options)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n<script>")
    with serving(run, tmp_path) as served:
        with opened(browser, served) as desk:
            desk.upload(file)
            desk.page.fill("#question textarea", question)
            desk.submit()
            assert (
                desk.page.locator("#answer [data-part=error]").get_attribute("data-code") == "predict.too_few_options"
            )
            desk.page.fill("#options textarea", "\n".join(options))
            desk.page.click("#submit")
            desk.page.wait_for_selector("#answer [data-part=completion]")
            assert desk.part("completion") == expected.text
        with opened(browser, served) as desk:
            desk.upload(broken)
            desk.page.fill("#question textarea", question)
            desk.page.fill("#options textarea", "\n".join(options))
            desk.submit()
            error = desk.page.locator("#answer [data-part=error]")
            assert (error.get_attribute("data-code") or "").startswith("images.")
            assert error.inner_text().startswith("image 1: ")
            assert "Traceback" not in desk.page.content()
            assert str(tmp_path) not in error.inner_text()
            desk.page.screenshot(path=os.environ.get("DEMO_SCREENSHOTS", str(tmp_path)) + "/error.png")


@pytest.mark.skipif(find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_the_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["demo", str(tmp_path)]) == 1
    assert "[install.extra_missing]" in capsys.readouterr().err
