"""Every recipe of a real model, for some steps of each stage, on its true architecture within its GPU's memory.

They run on hf, and with ``TOOLKIT_TEST_BACKEND=unsloth`` on Unsloth. Weights are random: nothing is downloaded; a model
of 8B needs 20 GB of disk.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.recipes_on_shapes import CASES, GIGABYTES, run_some_steps
from tests.helpers.shapes import release
from toolkit.models import Backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CONTEXT = 0.6e9
"""Bytes that CUDA and its libraries take beside what torch reserves."""


@pytest.fixture
def capped(shape: str) -> Iterator[int]:
    """Bytes that torch may reserve: those of the recipe's GPU."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    bytes_ = int(GIGABYTES[shape] * 1e9 - CONTEXT)
    if bytes_ > total:
        pytest.skip(f"this GPU has less than {GIGABYTES[shape]} GB")
    release()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(bytes_ / total)
    yield bytes_
    torch.cuda.set_per_process_memory_fraction(1.0)
    release()


@pytest.mark.parametrize(("file", "shape"), CASES, ids=[f"{file.stem}-{shape}" for file, shape in CASES])
def test_a_recipe_trains_within_its_gpus_memory(
    tmp_path: Path, shared_data: Path, backend: Backend, capped: int, file: Path, shape: str
) -> None:
    found = run_some_steps(file, shape, tmp_path, shared_data, small=False, backend=backend.name)
    losses = [line["loss"] for line in found.lines if "loss" in line]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert torch.cuda.max_memory_reserved() <= capped
    assert {result.backend for result in found.results.values()} == {backend.name}
