"""The process that runs llama.cpp. It reads JSON lines from standard input and writes replies to standard output.

    {"do": "load", "model": PATH, "mmproj": PATH, "context": TOKENS}
    {"do": "generate", "prompt": TEXT, "images": [...], "max_tokens": N, "stop": ID, "forbidden": [ID, ...]}
    {"do": "score", "prompt": TEXT, "images": [...], "completion": [ID, ...]}
    {"do": "quantize", "source": PATH, "target": PATH, "quantization": NAME}

An image is ``{"width": W, "height": H, "rgb": BASE64}``. A reply is ``{"value": ...}`` or ``{"error": TEXT}``. Output
of the libraries goes to standard error. Tokenizer, image processing and vision tower are those of llama.cpp, through
the C functions of the package llama-cpp-python.
"""

import ctypes
import json
import os
import sys
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from toolkit.models.llamacpp.files import QUANTIZATIONS

MARKER = "<__media__>"
"""Placeholder of an image in a prompt."""

IMAGE_TOKEN = -1
"""Replaces each token of an image in ``Generated.prompt``."""

LAST = -1
"""Index of the logits after the last token of a batch."""

FULL_OFFLOAD = 999
"""More layers than any model has, so that all layers go to the GPU if the library supports one."""

Request = Mapping[str, Any]


class LlamaError(RuntimeError):
    """A call of llama.cpp failed."""


@dataclass(frozen=True, slots=True)
class Library:
    """The two modules with the functions of llama.h and mtmd.h."""

    llama: Any
    mtmd: Any


@dataclass(frozen=True, slots=True)
class RgbImage:
    """An 8-bit RGB image, row by row: ``width * height * 3`` bytes."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy completion: token ids with their natural log-probabilities, the stop token included."""

    tokens: list[int]
    log_probs: list[float]
    prompt: list[int]
    """The prompt's tokens as llama.cpp read them, ``IMAGE_TOKEN`` for each token of an image."""


class Session:
    """One model with one context, which processes prompts one after another."""

    def __init__(self, library: Library, model: Path, mmproj: Path, context: int) -> None:
        """Load both files. Prompt and completion may have up to ``context`` tokens together.

        Raises:
            LlamaError: llama.cpp cannot load a file, or the two do not belong together.
        """
        self.llama, self.mtmd = library.llama, library.mtmd
        self.model = self._loaded_model(model)
        self.vocabulary = self.llama.llama_model_get_vocab(self.model)
        self.size = int(self.llama.llama_vocab_n_tokens(self.vocabulary))
        self.context = self._context(context)
        self.vision = self._vision(mmproj)

    def ends(self) -> list[int]:
        """Return the tokens at which llama.cpp's programs stop."""
        return [token for token in range(self.size) if self.llama.llama_vocab_is_eog(self.vocabulary, token)]

    def generate(
        self, prompt: str, images: Sequence[RgbImage], max_tokens: int, stop: int, forbidden: Sequence[int]
    ) -> Generated:
        """Return up to ``max_tokens`` tokens, each the most likely one not ``forbidden``. ``stop`` is included."""
        read, position = self._read(prompt, images)
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < max_tokens:
            scores = self._scores()
            allowed = scores.copy()
            allowed[list(forbidden)] = -np.inf
            token = int(allowed.argmax())
            tokens.append(token)
            log_probs.append(float(scores[token]))
            if token == stop:
                break
            self._decode([token], position)
            position += 1
        return Generated(tokens, log_probs, read)

    def score(self, prompt: str, images: Sequence[RgbImage], completion: Sequence[int]) -> list[float]:
        """Return the natural log-probability of each token of a completion, given the prompt and the tokens before."""
        _, position = self._read(prompt, images)
        scores = [float(self._scores()[completion[0]])]
        for offset, (token, following) in enumerate(pairwise(completion)):
            self._decode([token], position + offset)
            scores.append(float(self._scores()[following]))
        return scores

    def close(self) -> None:
        """Free all memory."""
        self.mtmd.mtmd_free(self.vision)
        self.llama.llama_free(self.context)
        self.llama.llama_model_free(self.model)

    def _loaded_model(self, path: Path) -> Any:
        options = self.llama.llama_model_default_params()
        if self.llama.llama_supports_gpu_offload():
            options.n_gpu_layers = FULL_OFFLOAD
        model = self.llama.llama_model_load_from_file(str(path).encode(), options)
        if model is None:
            raise LlamaError(f"llama.cpp cannot load {path.name}")
        return model

    def _context(self, tokens: int) -> Any:
        options = self.llama.llama_context_default_params()
        # In some models, attention between the tokens of an image is bidirectional, so they must fit into one pass.
        options.n_ctx = options.n_batch = options.n_ubatch = -(-tokens // 256) * 256
        options.n_threads = options.n_threads_batch = threads()
        options.swa_full = True  # a sliding window must not drop tokens of an image that is still being read
        options.no_perf = True
        context = self.llama.llama_init_from_model(self.model, options)
        if context is None:
            raise LlamaError(f"llama.cpp cannot make a context of {tokens} tokens")
        return context

    def _vision(self, path: Path) -> Any:
        options = self.mtmd.mtmd_context_params_default()
        options.use_gpu = bool(self.llama.llama_supports_gpu_offload())
        options.n_threads = threads()
        options.print_timings = options.warmup = False
        vision = self.mtmd.mtmd_init_from_file(str(path).encode(), self.model, options)
        if vision is None:
            raise LlamaError(f"llama.cpp cannot load {path.name} as this model's projector")
        return vision

    def _read(self, prompt: str, images: Sequence[RgbImage]) -> tuple[list[int], int]:
        """Evaluate a prompt with an empty cache. Return its tokens and the position after it."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        bitmaps = [self._bitmap(image) for image in images]
        chunks = self.mtmd.mtmd_input_chunks_init()
        try:
            self._tokenize(prompt, bitmaps, chunks)
            after = self.llama.llama_pos(0)
            batch = int(self.llama.llama_n_batch(self.context))
            if self.mtmd.mtmd_helper_eval_chunks(
                self.vision, self.context, chunks, 0, 0, batch, True, ctypes.byref(after)
            ):
                raise LlamaError("llama.cpp cannot evaluate the prompt, which may be longer than the context")
            return self._tokens(chunks), int(after.value)
        finally:
            self.mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                self.mtmd.mtmd_bitmap_free(bitmap)

    def _bitmap(self, image: RgbImage) -> Any:
        pixels = (ctypes.c_uint8 * len(image.rgb)).from_buffer_copy(image.rgb)
        return self.mtmd.mtmd_bitmap_init(image.width, image.height, pixels)

    def _tokenize(self, prompt: str, bitmaps: Sequence[Any], chunks: Any) -> None:
        encoded = prompt.encode()
        # The chat template has rendered the BOS already, so no special tokens are added.
        text = self.mtmd.mtmd_input_text(encoded, len(encoded), add_special=False, parse_special=True)
        given = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
        failure = self.mtmd.mtmd_tokenize(self.vision, chunks, ctypes.byref(text), given, len(bitmaps))
        if failure:
            raise LlamaError(f"llama.cpp cannot read the prompt with {len(bitmaps)} images (code {failure})")

    def _tokens(self, chunks: Any) -> list[int]:
        found: list[int] = []
        count = ctypes.c_size_t(0)
        for number in range(self.mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self.mtmd.mtmd_input_chunks_get(chunks, number)
            if self.mtmd.mtmd_input_chunk_get_type(chunk) == self.mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                text = self.mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                found += [int(token) for token in text[: count.value]]
            else:
                found += [IMAGE_TOKEN] * int(self.mtmd.mtmd_input_chunk_get_n_tokens(chunk))
        return found

    def _decode(self, tokens: list[int], position: int) -> None:
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i == len(tokens) - 1
            if self.llama.llama_decode(self.context, batch):
                raise LlamaError("llama.cpp cannot decode a token. The completion may be longer than the context")
        finally:
            self.llama.llama_batch_free(batch)

    def _scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the natural log-probabilities of the next token, shape (vocabulary,)."""
        logits = self.llama.llama_get_logits_ith(self.context, LAST)
        raw = np.ctypeslib.as_array(logits, shape=(self.size,)).astype(np.float64)
        shifted = raw - raw.max()
        scores: np.ndarray[Any, np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum())
        return scores


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
        handlers: Mapping[str, Callable[[Request], Any]] = {
            "load": self._load,
            "generate": self._generate,
            "score": self._score,
            "quantize": self._quantize,
        }
        return handlers[request["do"]](request)

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
        return self._open().score(request["prompt"], _images(request["images"]), request["completion"])

    def _quantize(self, request: Request) -> None:
        quantize(self.library, Path(request["source"]), Path(request["target"]), request["quantization"])

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


def load_library() -> Library:
    """Load both libraries into this process. A crash in them ends the process, so use ``child.Child``.

    Raises:
        ImportError: The package is not installed.
        OSError, RuntimeError: The libraries cannot be loaded on this machine.
    """
    from llama_cpp import llama_cpp, mtmd_cpp

    llama_cpp.llama_backend_init()
    return Library(llama_cpp, mtmd_cpp)


def quantize(library: Library, source: Path, target: Path, quantization: str) -> None:
    """Write ``source``, a GGUF in 16 bits, to ``target`` with ``quantization``.

    Raises:
        LlamaError: llama.cpp failed.
    """
    options = library.llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = QUANTIZATIONS[quantization].ftype, threads()
    failure = library.llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failure:
        raise LlamaError(f"llama.cpp cannot write {target.name} (code {failure})")


def threads() -> int:
    """Return the number of threads: OMP_NUM_THREADS, otherwise the CPUs available to this process."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdigit() and int(requested):
        return int(requested)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
