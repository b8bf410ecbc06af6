"""The process that llama.cpp runs in: requests as JSON lines on standard input, replies on standard output.

    {"do": "load", "model": PATH, "mmproj": PATH, "context": TOKENS}
    {"do": "answer", "prompt": TEXT, "pictures": [...], "most": N, "stop": ID, "forbidden": [ID, ...]}
    {"do": "score", "prompt": TEXT, "pictures": [...], "answer": [ID, ...]}
    {"do": "quantise", "source": PATH, "target": PATH, "kind": NAME}

A picture is ``{"width": W, "height": H, "rgb": BASE64}``. A reply is ``{"value": ...}`` or ``{"error": TEXT}``. What
the libraries print goes to standard error.
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
from toolkit.models.llamacpp.session import Picture, Session

Request = Mapping[str, Any]


class Worker:
    """Does what requests ask for, with at most one model in memory."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.session: Session | None = None

    def do(self, request: Request) -> Any:
        """The reply's value.

        Raises:
            LlamaError: llama.cpp reported a failure.
        """
        kinds: Mapping[str, Callable[[Request], Any]] = {
            "load": self._load,
            "answer": self._answer,
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

    def _answer(self, request: Request) -> Any:
        most, stop, forbidden = (request[name] for name in ("most", "stop", "forbidden"))
        pictures = _pictures(request["pictures"])
        return asdict(self._open().answer(request["prompt"], pictures, most, stop, forbidden))

    def _score(self, request: Request) -> list[float]:
        return self._open().score(request["prompt"], _pictures(request["pictures"]), request["answer"])

    def _quantise(self, request: Request) -> None:
        quantise(self.library, Path(request["source"]), Path(request["target"]), request["kind"])

    def _open(self) -> Session:
        if self.session is None:
            raise LlamaError("no model is loaded")
        return self.session


def main() -> None:
    """Serve requests until standard input ends."""
    # llama.cpp and the libraries below it may print: replies keep the only way to the real standard output.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(load_library()), sys.stdin, replies)


def serve(worker: Worker, requests: TextIO, replies: TextIO) -> None:
    """Answer each line of ``requests`` with one of ``replies``."""
    for line in requests:
        try:
            reply = {"value": worker.do(json.loads(line))}
        except LlamaError as error:
            reply = {"error": str(error)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _pictures(given: Sequence[Mapping[str, Any]]) -> list[Picture]:
    return [Picture(one["width"], one["height"], b64decode(one["rgb"])) for one in given]


if __name__ == "__main__":
    main()
