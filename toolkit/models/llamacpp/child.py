"""llama.cpp in a process of its own: a fault in native code ends that process, and the run goes on with an error."""

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
from toolkit.models.llamacpp.library import PACKAGE

WORKER = "toolkit.models.llamacpp.worker"
TOLD = 5
"""How many of the last lines that llama.cpp printed are told when it fails."""


def is_installed() -> bool:
    """Whether llama.cpp can be used."""
    return find_spec("llama_cpp") is not None


def require(purpose: str) -> None:
    """See that llama.cpp can be used.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not is_installed():
        raise MissingExtraError(PACKAGE, "gguf", purpose)


class Child:
    """A running worker; the process ends with ``close``, or when nobody holds this any more."""

    def __init__(self, module: str = WORKER) -> None:
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        self._said = said
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a terminal sends Ctrl-C to all of a group: this side alone decides when to stop
        )
        self.close = weakref.finalize(self, _end, self._process, said)
        """End the process; a second time does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, model: Path, mmproj: Path, context: int) -> list[int]:
        """Have a model with its projector in memory, in place of the one before; gives the tokens that it stops at.

        Raises:
            ModelError: llama.cpp cannot load them, or it died.
        """
        ends: list[int] = self._ask(do="load", model=str(model), mmproj=str(mmproj), context=context)
        return ends

    def answer(
        self, prompt: str, pictures: Sequence[Image.Image], most: int, stop: int, forbidden: Sequence[int]
    ) -> tuple[list[int], list[float], list[int]]:
        """Tokens of the greedy answer, the logarithms of their probabilities, and the prompt's tokens.

        See ``session.Session.answer``. Raises ModelError as ``load``.
        """
        found = self._ask(
            do="answer", prompt=prompt, pictures=_plain(pictures), most=most, stop=stop, forbidden=list(forbidden)
        )
        return found["tokens"], found["log_probs"], found["prompt"]

    def score(self, prompt: str, pictures: Sequence[Image.Image], answer: Sequence[int]) -> list[float]:
        """The logarithm of the probability of each token of an answer; raises ModelError as ``load``."""
        found: list[float] = self._ask(do="score", prompt=prompt, pictures=_plain(pictures), answer=list(answer))
        return found

    def quantise(self, source: Path, target: Path, kind: str) -> None:
        """Write a GGUF in 16 bits in another quantisation; raises ModelError as ``load``."""
        self._ask(do="quantise", source=str(source), target=str(target), kind=kind)

    def _ask(self, **request: Any) -> Any:
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
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-TOLD:]) or "nothing"


def _end(process: subprocess.Popen[str], said: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    said.close()


def _plain(pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    return [
        {"width": picture.width, "height": picture.height, "rgb": b64encode(picture.convert("RGB").tobytes()).decode()}
        for picture in pictures
    ]
