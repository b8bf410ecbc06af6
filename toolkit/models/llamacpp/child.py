"""llama.cpp in a child process, so that a crash in native code becomes an error of the run."""

import json
import subprocess
import sys
import tempfile
import weakref
from base64 import b64encode
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

from PIL import Image

from toolkit.errors import MissingExtraError, ModelError

PACKAGE = "llama-cpp-python"
"""It has libllama and libmtmd, built from source at installation, and ctypes declarations of their functions."""
WORKER = "toolkit.models.llamacpp.worker"
LAST_LINES = 5
"""Number of llama.cpp's last output lines in an error."""


def is_installed() -> bool:
    """Return whether llama.cpp is installed."""
    return find_spec("llama_cpp") is not None


def require(purpose: str) -> None:
    """Check that llama.cpp is installed.

    Raises:
        MissingExtraError: It is not installed.
    """
    if not is_installed():
        raise MissingExtraError(PACKAGE, "gguf", purpose)


class Child:
    """A running worker process. It ends with ``close``, or when the object is garbage-collected."""

    def __init__(self, module: str = WORKER) -> None:
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        self._output = output
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a terminal sends Ctrl-C to the whole group, but the parent alone stops the child
        )
        self.close = weakref.finalize(self, _end, self._process, output)
        """End the process. Further calls have no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, model: Path, mmproj: Path, context: int) -> list[int]:
        """Load a model with its projector in place of the previous one. Return the tokens at which it stops.

        Raises:
            ModelError: llama.cpp cannot load them, or the process ended.
        """
        ends: list[int] = self._request(do="load", model=str(model), mmproj=str(mmproj), context=context)
        return ends

    def generate(
        self, prompt: str, images: Sequence[Image.Image], max_tokens: int, stop: int, forbidden: Sequence[int]
    ) -> tuple[list[int], list[float], list[int]]:
        """Return the tokens of the greedy completion, their log-probabilities, and the prompt's tokens.

        See ``worker.Session.generate``. Raises ModelError as ``load``.
        """
        found = self._request(
            do="generate",
            prompt=prompt,
            images=_encode_images(images),
            max_tokens=max_tokens,
            stop=stop,
            forbidden=list(forbidden),
        )
        return found["tokens"], found["log_probs"], found["prompt"]

    def score(self, prompt: str, images: Sequence[Image.Image], completion: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of a completion. Raises ModelError as ``load``."""
        found: list[float] = self._request(
            do="score", prompt=prompt, images=_encode_images(images), completion=list(completion)
        )
        return found

    def quantize(self, source: Path, target: Path, quantization: str) -> None:
        """Quantize a 16-bit GGUF. Raises ModelError as ``load``."""
        self._request(do="quantize", source=str(source), target=str(target), quantization=quantization)

    def _request(self, **request: Any) -> Any:
        reply = ""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            reply = self._process.stdout.readline()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass
        if not reply:
            raise ModelError(
                "model.llamacpp_died",
                "llama.cpp must not exit before it replies",
                place=request["do"],
                value=f"exit code {self._process.wait()}",
                remedy=f"Read its last output: {self._last()}",
            )
        found = json.loads(reply)
        if "error" in found:
            raise ModelError(
                "model.llamacpp_failed",
                "llama.cpp must complete the request",
                place=request["do"],
                value=found["error"],
                remedy=f"Read its last output: {self._last()}",
            )
        return found["value"]

    def _last(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-LAST_LINES:]) or "nothing"


def _end(process: subprocess.Popen[str], output: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    output.close()


def _encode_images(images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    return [
        {"width": image.width, "height": image.height, "rgb": b64encode(image.convert("RGB").tobytes()).decode()}
        for image in images
    ]
