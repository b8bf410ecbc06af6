"""The process that runs llama.cpp. It reads JSON lines from standard input and writes replies to standard output.

    {"do": "load", "model": PATH, "mmproj": PATH, "context": TOKENS}
    {"do": "generate", "prompt": TEXT, "images": [...], "max_tokens": N, "stop": ID, "forbidden": [ID, ...]}
    {"do": "score", "prompt": TEXT, "images": [...], "answer": [ID, ...]}
    {"do": "quantise", "source": PATH, "target": PATH, "kind": NAME}

An image is ``{"width": W, "height": H, "rgb": BASE64}``. A reply is ``{"value": ...}`` or ``{"error": TEXT}``. Output
of the libraries goes to standard error.
"""

import json
import os
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from toolkit.models.llamacpp.library import Library, LlamaError, load_library
from toolkit.models.llamacpp.quantise import quantise
from toolkit.models.llamacpp.session import RgbImage, Session

Request = Mapping[str, Any]


class Worker:
    """Handles requests, with at most one loaded model."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.session: Session | None = None

    def do(self, request: Request) -> Any:
        """Return the value of the reply.

        Raises:
            LlamaError: A call of llama.cpp failed.
        """
        kinds: Mapping[str, Callable[[Request], Any]] = {
            "load": self._load,
            "generate": self._generate,
            "score": self._score,
            "quantise": self._quantise,
        }
        return kinds[request["do"]](request)

    def _load(self, request: Request) -> list[int]:
        if self.session is not None:
            self.session.close()
            self.session = None
        files = Path(request["model"]), Path(request["mmproj"])
        self.session = Session(self.library, *files, request["context"])
        return self.session.ends()

    def _generate(self, request: Request) -> Any:
        max_tokens, stop, forbidden = (request[name] for name in ("max_tokens", "stop", "forbidden"))
        images = _images(request["images"])
        return asdict(self._open().generate(request["prompt"], images, max_tokens, stop, forbidden))

    def _score(self, request: Request) -> list[float]:
        return self._open().score(request["prompt"], _images(request["images"]), request["answer"])

    def _quantise(self, request: Request) -> None:
        quantise(self.library, Path(request["source"]), Path(request["target"]), request["kind"])

    def _open(self) -> Session:
        if self.session is None:
            raise LlamaError("no model is loaded")
        return self.session


def main() -> None:
    """Serve requests until standard input ends."""
    # llama.cpp may print to standard output, so it is redirected, and replies use a copy of the original descriptor.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(load_library()), sys.stdin, replies)


def serve(worker: Worker, requests: TextIO, replies: TextIO) -> None:
    """Write one line to ``replies`` for each line of ``requests``."""
    for line in requests:
        try:
            reply = {"value": worker.do(json.loads(line))}
        except LlamaError as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _images(encoded: Sequence[Mapping[str, Any]]) -> list[RgbImage]:
    return [RgbImage(one["width"], one["height"], b64decode(one["rgb"])) for one in encoded]


if __name__ == "__main__":
    main()
