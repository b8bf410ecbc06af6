"""The trace of GPU memory: the allocator, interpolated decoding steps, and the limits of the plan."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_cuda import kernels
from tests.fake_cuda.allocator import MIB, Event, Usage, replay
from tests.fake_cuda.compare import compare
from tests.fake_cuda.growth import END, FAR, JUMP, NEAR, grown, with_every_step
from tests.fake_cuda.log import Allocation
from tests.fake_cuda.trace import Spec, trace
from toolkit.models.families import LAYERS
from toolkit.planning.architecture import build_architecture
from toolkit.planning.gpu import usable_bytes
from toolkit.planning.model_files import UNQUANTIZED_MODULES
from toolkit.planning.stages import Setting
from toolkit.planning.tokens import RowSize

SHAPES = Path(__file__).parents[1] / "toolkit/planning/shapes"


def log(*lines: tuple[int, float]) -> list[Event]:
    """Return events from (block, MiB). 0 MiB: released."""
    return [Event(block, int(size * MIB)) for block, size in lines]


def test_small_requests_use_one_segment_of_two_mebibytes_in_units_of_512_bytes() -> None:
    events = [Event(number, 1) for number in range(4096)]
    assert replay(events) == Usage(reserved=2 * MIB, allocated=4096 * 512)
    assert replay([*events, Event(4096, 1)]).reserved == 4 * MIB


def test_requests_of_less_than_ten_mebibytes_use_segments_of_twenty() -> None:
    assert replay(log((1, 9), (2, 9))) == Usage(20 * MIB, 18 * MIB)
    assert replay(log((1, 9), (2, 9), (3, 9))).reserved == 40 * MIB
    assert replay(log((1, 0.5), (2, 9))).reserved == 22 * MIB  # Small blocks have their own pool.


def test_larger_requests_get_their_size_rounded_up_to_two_mebibytes() -> None:
    assert replay(log((1, 10))).reserved == 10 * MIB
    assert replay(log((1, 100.5), (2, 31))) == Usage((102 + 32) * MIB, int(131.5 * MIB))


def test_the_best_fit_is_taken_and_split() -> None:
    """40 and 30 MiB are free. 25 uses the block of 30, 5 uses its remainder, and 40 uses the other block."""
    events = log((1, 40), (2, 30), (1, 0), (2, 0), (3, 25), (4, 5), (5, 40))
    assert replay(events) == Usage(70 * MIB, 70 * MIB)


def test_a_remainder_of_at_most_one_mebibyte_is_not_split_off_a_large_block() -> None:
    split = log((1, 40), (1, 0), (2, 38), (3, 1.5))
    assert replay(split).reserved == 40 * MIB
    unsplit = log((1, 40), (1, 0), (2, 39), (3, 1.5))
    assert replay(unsplit).reserved == 60 * MIB


def test_released_neighbours_merge() -> None:
    """Three blocks of 6 MiB are in one segment. Two adjacent free blocks fit 12 MiB, two separated ones do not."""
    three = ((1, 6), (2, 6), (3, 6))
    assert replay(log(*three, (1, 0), (2, 0), (4, 9.5))).reserved == 20 * MIB
    assert replay(log(*three, (1, 0), (3, 0), (4, 9.5))).reserved == 40 * MIB


def test_a_growing_cache_leaves_unusable_pieces_unless_segments_expand() -> None:
    """Each copy is larger than the previous one, which is released afterwards."""
    events = []
    for step in range(8):
        events.append(Event(step, (100 + 2 * step) * MIB))
        if step:
            events.append(Event(step - 1, 0))
    assert replay(events) == Usage(sum((100, 102, 104, 106, 108, 110, 112, 114)) * MIB, (112 + 114) * MIB)
    assert replay(events, expandable=True).reserved < 350 * MIB


def test_an_expandable_segment_grows_by_pages_and_reuses_its_end() -> None:
    """100 MiB are five pages of 20. After release, 110 needs one more page. The small pool has small pages."""
    assert replay(log((1, 100)), expandable=True).reserved == 100 * MIB
    assert replay(log((1, 100), (1, 0), (2, 110)), expandable=True).reserved == 120 * MIB
    assert replay(log((1, 100), (2, 1)), expandable=True).reserved == 102 * MIB


def test_the_release_of_an_unknown_block_is_ignored() -> None:
    assert replay(log((1, 12), (7, 0), (2, 12))) == Usage(24 * MIB, 24 * MIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_what_is_released_can_be_allocated_again(expandable: bool) -> None:
    once = [*log(*((number, 10 + 2 * number) for number in range(1, 30)))]
    again = [*once, *log(*((number, 0) for number in range(1, 30))), *once]
    assert replay(again, expandable=expandable) == replay(once, expandable=expandable)


def decoding(steps: int, *, odd: bool = False) -> list[tuple[bool, Allocation]]:
    """Return a log of decoding steps: a temporary of 100 bytes, and a cache of 1000 that grows by 10 per step."""
    logged: list[tuple[bool, Allocation]] = []
    number = 0

    def allocate(size: int, phase: str) -> Allocation:
        nonlocal number
        number += 1
        logged.append((True, Allocation(number, size, "", (size,), "uint8", phase)))
        return logged[-1][1]

    cache = allocate(1000, "prefill")
    for step, phase in [*enumerate(NEAR), (None, JUMP), *enumerate(FAR, steps - len(FAR)), (None, END)]:
        before = cache
        if step is None:
            logged.append((False, allocate(1, phase)))
            if phase == JUMP:
                cache = allocate(1000 + 10 * (steps - len(FAR)), phase)
        else:
            scratch = allocate(100 if not odd or phase not in FAR else 90, phase)
            if odd and phase in FAR:
                allocate(8, phase)
            cache = allocate(1010 + 10 * step, phase)
            logged.append((False, scratch))
        if before is not cache:
            logged.append((False, before))
    logged.append((False, cache))
    allocate(5, "loss")
    return logged


def test_decode_steps_that_were_not_traced_are_between_those_that_were() -> None:
    steps = grown(decoding(20), 20)
    assert [[event.size for event in step if event.size] for step in steps] == [
        [100, 1010 + 10 * n] for n in range(3, 20)
    ]
    releases = [[event.block for event in step if not event.size] for step in steps]
    made = [[event.block for event in step if event.size] for step in steps]
    assert releases[5] == [made[5][0], made[4][1]]  # its own temporary, and the cache of the previous step


def test_a_rollout_is_replayed_with_every_step_and_ends_with_nothing() -> None:
    events = with_every_step(decoding(20), 20)
    sizes = {event.block: event.size for event in events if event.size}
    assert sorted(size for size in sizes.values() if size >= 1000) == [1000 + 10 * n for n in range(21)]
    assert [event.size for event in events][-1] == 5
    alive = set(sizes) - {event.block for event in events if not event.size}
    assert [sizes[block] for block in alive] == [5]


def test_decode_steps_that_allocate_differently_are_an_error() -> None:
    with pytest.raises(ValueError):
        grown(decoding(20, odd=True), 20)


def test_the_choice_of_a_4_bit_kernel_is_bitsandbytes_own() -> None:
    """The kernel is fused for few rows. For float32, there is no fused kernel from eight rows on."""
    fused = kernels._chooser((58, 8, 9))
    assert fused(0, torch.bfloat16, 1, 10240, 2560)
    assert not fused(0, torch.bfloat16, 1536, 2560, 10240)
    assert fused(0, torch.float32, 7, 10240, 2560)
    assert not fused(0, torch.float32, 8, 10240, 2560)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc compiles the simulated device")
@pytest.mark.parametrize(("backend", "unquantized"), [("hf", ()), ("unsloth", UNQUANTIZED_MODULES)])
def test_the_plan_of_a_short_medgemma_is_within_its_limits_of_the_trace(
    backend: Any, unquantized: tuple[str, ...]
) -> None:
    """Two layers of each stack have their real widths. The vision tower is in 4 bits on hf, and in 16 bits on unsloth.

    tests/benchmarks/bench_memory.py compares the shipped recipes.
    """
    fields = json.loads((SHAPES / "medgemma_4b.json").read_text(encoding="utf-8"))
    fields["text_config"] |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    fields["vision_config"]["num_hidden_layers"] = 2
    setting = Setting(
        "grpo",
        RowSize(text=250, images=256, answer=0, image_count=1, patches=4096),
        "4bit",
        bf16=True,
        dropout=0.05,
        targets=LAYERS,
        optimizer="paged_adamw_8bit",
        concurrent=8,
        answer_tokens=128,
        backend=backend,
    )
    usable = usable_bytes(16)
    traced = trace(Spec(fields, setting, usable))
    model = build_architecture(fields, unquantized)
    assert compare(model, setting, usable, traced).broken == ()
    fewer = dataclasses.replace(setting, concurrent=4)
    assert compare(model, fewer, usable, traced).broken != ()
