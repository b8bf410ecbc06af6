"""Too little memory: the same update in smaller passes, the same answers in smaller batches, a probe of no effect.

A CPU has no such error, so one is injected: a hook on the model raises what a GPU raises, forward or in the middle of
the backward pass, where more rows go through than "fit".
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import build
from test_training import adapter_of, only
from training import context_of, small_recipe

from toolkit.backends.base import Sampling
from toolkit.backends.hf import HfBackend
from toolkit.backends.ladder.at_once import AtOnce, attempt
from toolkit.backends.ladder.cut import cut, rows_of
from toolkit.backends.ladder.figures import put_together
from toolkit.backends.ladder.probe_step import state_bytes
from toolkit.compute import machine
from toolkit.errors import ModelError, TrainingError
from toolkit.recipe import Recipe
from toolkit.run import Record
from toolkit.stages.context import Context
from toolkit.stages.grpo import train_grpo
from toolkit.stages.prompts import Prompts
from toolkit.stages.sft import train_sft

LOOK = [1, 1, 1]
"""The passes of ``look_first``: two of one row, and one with another row's picture."""
TRAIN: Mapping[str, Callable[..., Record]] = {"sft": train_sft, "grpo": train_grpo}


@dataclass
class SmallMemory:
    """Runs out of memory wherever more rows go through than fit. ``seen``: the rows of each pass that began."""

    fits: int
    where: str = "forward"
    gradients: bool | None = None
    """True: passes with gradients only; False: those without only."""
    spared: int = 0
    """So many passes that would not fit go well all the same: memory is freed and filled by others too."""
    seen: list[int] = field(default_factory=list)
    raised: int = 0

    def __call__(self, module: torch.nn.Module, args: Any, fields: Mapping[str, Any], output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if self.gradients is not None and self.gradients != torch.is_grad_enabled():
            return
        self.seen.append(len(hidden))
        if len(hidden) <= self.fits:
            return
        if self.spared:
            self.spared -= 1
        elif self.where == "forward":
            self.fail()
        else:
            hidden.register_hook(self.fail)

    def fail(self, *_: Any) -> None:
        self.raised += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than fits (injected).")

    def put_into(self, model: Any) -> Any:
        """Forward: after the decoder. Backward: after its first layer, when those above have their gradients."""
        decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
        place = decoder if self.where == "forward" else decoder.layers[0]
        return place.register_forward_hook(self, with_kwargs=True)


@contextmanager
def small_memory(patch: pytest.MonkeyPatch, **how: Any) -> Iterator[SmallMemory]:
    memory, load = SmallMemory(**how), HfBackend.load

    def loaded(self: HfBackend, *args: Any, **options: Any) -> Any:
        policy = load(self, *args, **options)
        memory.put_into(policy.model)
        return policy

    with patch.context() as inner:
        inner.setattr(HfBackend, "load", loaded)
        yield memory


def run(recipe: Recipe, stage: str, **options: Any) -> tuple[Record, list[dict[str, Any]]]:
    with context_of(recipe) as context:
        record = TRAIN[stage](context, **options)
        return record, [line for line in context.run.metrics() if "loss" in line]


def recipe_of(stage: str, folder: Path, name: str, **tables: Mapping[str, Any]) -> Recipe:
    base: dict[str, dict[str, Any]] = {
        "lora": {"dropout": 0.0},
        "sft": {"max_steps": 2, "batch_size": 4, "accumulation": 2},
        "grpo": {"max_steps": 2, "micro_batch": 4, "max_completion_tokens": 8},
    }
    for table, keys in tables.items():
        base[table] = {**base.get(table, {}), **keys}
    return only(stage, folder, name, base)


def assert_close(found: Recipe, wanted: Recipe, stage: str) -> None:
    """The same adapter. Adam divides a gradient by its size, so that rounding near 0 can move a weight by a step."""
    one, other = adapter_of(found, stage), adapter_of(wanted, stage)
    assert one.keys() == other.keys()
    apart = sum(float((one[name] - other[name]).square().sum()) for name in one if "lora_B" in name)
    moved = sum(float(other[name].square().sum()) for name in one if "lora_B" in name)
    assert moved > 0
    assert apart < 1e-4 * moved


def assert_same_figures(found: list[dict[str, Any]], wanted: list[dict[str, Any]], *names: str) -> None:
    for one, other in zip(found, wanted, strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), (one["step"], name)


SFT_FIGURES = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
GRPO_FIGURES = (
    "loss",
    "grad_norm",
    "entropy",
    "reward",
    "completions/mean_length",
    "num_tokens",
    "clip_ratio/high_max",
)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_makes_the_same_update_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, checkpointing: bool
) -> None:
    sft = {"gradient_checkpointing": checkpointing}
    whole, cut_up = (recipe_of("sft", tmp_path, name, sft=sft) for name in ("whole", "cut"))
    _, wanted = run(whole, "sft")
    # The first pass of step 1 goes well, the second does not: both are made again.
    with small_memory(monkeypatch, fits=2, where=where, spared=1) as memory:
        record, found = run(cut_up, "sft")
    assert memory.raised == 1
    assert_same_figures(found, wanted, *SFT_FIGURES)
    assert_close(cut_up, whole, "sft")
    assert record["memory"]["out_of_memory"] == 1
    assert record["memory"]["micro_batch"] == 2
    assert [line.get("out_of_memory") for line in found] == [1, None]
    assert found[0]["micro_batch"] == 2
    # 4 and 4 (spared, failed), then halves for the rest of the stage; checkpointing runs each pass a second time.
    if not checkpointing:
        assert memory.seen == [*LOOK, 4, 4, *[2] * 8]


def test_memory_that_shrinks_twice_is_followed_down_to_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cut_up = (recipe_of("sft", tmp_path, name) for name in ("whole", "cut"))
    _, wanted = run(whole, "sft")
    with small_memory(monkeypatch, fits=1, where="backward") as memory, caplog.at_level(logging.WARNING):
        record, found = run(cut_up, "sft")
    assert memory.raised == 2
    assert_same_figures(found, wanted, *SFT_FIGURES)
    assert_close(cut_up, whole, "sft")
    assert record["memory"] == {
        "peak_allocated_bytes": None,
        "peak_reserved_bytes": None,
        "out_of_memory": 2,
        "micro_batch": 1,
        "probe": None,
    }
    told = [line.message for line in caplog.records if "out of memory" in line.message]
    assert told == [
        "step 1: out of memory with 4 rows at once: 2 from here on",
        "step 1: out of memory with 2 rows at once: 1 from here on",
    ]


def test_where_one_row_is_too_many_the_error_names_the_keys_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("sft", tmp_path, "none", model={"precision": "32bit"})
    with small_memory(monkeypatch, fits=0), pytest.raises(TrainingError) as caught:
        run(recipe, "sft")
    for key in ("step 1", "gradient_checkpointing", 'precision = "4bit"', "max_side below 112", "lora.r below 4"):
        assert key in str(caught.value), key
    assert "max_completion_tokens" not in str(caught.value)


def test_one_of_several_processes_makes_no_passes_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "several")
    monkeypatch.setattr("toolkit.backends.ladder.passes.world_size", lambda: 2)
    with small_memory(monkeypatch, fits=2), pytest.raises(TrainingError, match=r"several processes.*Lower batch_size"):
        run(recipe, "sft")


def test_memory_that_ends_between_passes_is_told_with_the_same_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (injected)")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(TrainingError, match=r"step 1: .*paged_adamw_8bit"):
        run(recipe_of("sft", tmp_path, "state"), "sft")


class FakeCuda:
    """torch.cuda's counters of one GPU, which a reset puts to what is held."""

    def __init__(self) -> None:
        self.peak = self.held = 0

    def hold(self, size: int) -> None:
        self.held, self.peak = size, max(self.peak, size)

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def max_memory_reserved(self, device: int) -> int:
        return self.peak

    def max_memory_allocated(self, device: int) -> int:
        return self.peak // 2

    def reset_peak_memory_stats(self, device: int) -> None:
        self.peak = self.held


def test_a_measurement_within_a_stage_leaves_the_stage_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(machine, "_cuda", lambda: cuda)
    machine.forget_peak()
    for size in (90, 10):
        cuda.hold(size)
    machine.begin_peak()
    for size in (40, 10):
        cuda.hold(size)
    assert machine.gpu_peaks() == {"peak_allocated_bytes": 20, "peak_reserved_bytes": 40}
    assert machine.peak_gpu_memory() == 90
    machine.begin_peak()
    assert machine.gpu_peaks()["peak_reserved_bytes"] == 10
    assert machine.peak_gpu_memory() == 90
    machine.forget_peak()
    assert machine.peak_gpu_memory() == 10


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_grpo_makes_the_same_update_in_smaller_passes_with_every_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    importance = "sequence" if loss == "grpo" else "token"
    grpo: dict[str, Any] = {"loss": loss, "importance": importance, "beta": 0.1, "max_steps": 1, "prompts_per_step": 3}
    grpo |= {"epsilon_high": 5.0} if loss == "cispo" else {}
    whole, cut_up = (recipe_of("grpo", tmp_path, name, grpo=grpo) for name in ("whole", "cut"))
    _, wanted = run(whole, "grpo")
    generations = count_generations(monkeypatch)
    with small_memory(monkeypatch, fits=3, where="backward", gradients=True, spared=1) as memory:
        record, found = run(cut_up, "grpo")
    assert memory.raised == 1
    assert memory.seen == [4, 4, *[2] * 6]  # two of three passes, then all three in halves
    assert generations == [12]  # the completions that are there are not generated again
    assert_same_figures(found, wanted, *(name for name in (*GRPO_FIGURES, "kl") if name in wanted[0]))
    assert_close(cut_up, whole, "grpo")
    assert record["memory"]["micro_batch"] == 2


def count_generations(patch: pytest.MonkeyPatch) -> list[int]:
    """Prompts of each call of a model's ``generate`` from now on."""
    from transformers import GenerationMixin

    plain, calls = GenerationMixin.generate, []

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(options["input_ids"]))
        return plain(self, *args, **options)

    patch.setattr(GenerationMixin, "generate", generate)
    return calls


def test_parts_of_unequal_size_weigh_by_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grpo = {"loss": "grpo", "max_steps": 1, "prompts_per_step": 2, "generations": 5, "micro_batch": 5}
    whole, cut_up = (recipe_of("grpo", tmp_path, name, grpo=grpo) for name in ("whole", "cut"))
    _, wanted = run(whole, "grpo")
    with small_memory(monkeypatch, fits=3, gradients=True) as memory:
        _, found = run(cut_up, "grpo")
    assert memory.seen == [5, 2, 3, 2, 3]
    assert_same_figures(found, wanted, *GRPO_FIGURES)
    assert_close(cut_up, whole, "grpo")


def test_grpo_writes_and_reads_fewer_completions_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grpo = {"max_steps": 2, "beta": 0.1}
    recipe = recipe_of("grpo", tmp_path, "small", grpo=grpo)
    generations = count_generations(monkeypatch)
    with small_memory(monkeypatch, fits=3, gradients=False) as memory:
        record, found = run(recipe, "grpo")
    assert generations == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert memory.raised == 3  # 8, 4 while writing; 4 while the reference reads
    assert record["memory"]["out_of_memory"] == 3
    assert record["memory"]["micro_batch"] == 4
    assert len(found) == 2
    assert all(line["completions/mean_length"] > 0 for line in found)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_rows_of_pictures_of_different_sizes_keep_their_own_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, shared_data: Path
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "model": {"name": str(build("qwen2_5_vl", shared_data, tmp_path)), "max_tokens": 600},
        "images": {"max_side": 84},
        "sft": {"max_steps": 1, "batch_size": 4, "accumulation": 1},
        "grpo": {"max_steps": 1, "prompts_per_step": 2, "generations": 2, "micro_batch": 4, "max_completion_tokens": 4},
    }
    whole, cut_up = (recipe_of(stage, tmp_path, name, **tables) for name in ("whole", "cut"))
    unequal_pictures(monkeypatch)
    _, wanted = run(whole, stage)
    with small_memory(monkeypatch, fits=3, gradients=True, where="backward") as memory:
        _, found = run(cut_up, stage)
    assert memory.seen == [4, 2, 2]
    assert_same_figures(found, wanted, "loss", "grad_norm", "entropy")
    assert_close(cut_up, whole, stage)


def unequal_pictures(patch: pytest.MonkeyPatch) -> None:
    """Every third picture has half the height."""
    plain = Prompts.row

    def row(self: Prompts, sample: Any, *, answer: bool = False) -> Any:
        found = plain(self, sample, answer=answer)
        if sum(map(ord, sample.id)) % 3 == 0:
            for place, image in enumerate(found.images):
                smaller = image.resize((image.width, image.height // 2))
                smaller.info["toolkit_key"] = f"half of {image.info['toolkit_key']}"
                found.images[place] = smaller
        return found

    patch.setattr(Prompts, "row", row)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_probe_step_leaves_the_training_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, dropout: float
) -> None:
    plain, probed = (recipe_of(stage, tmp_path, name, lora={"dropout": dropout}) for name in ("plain", "probed"))
    before, wanted = run(plain, stage)
    generations = count_generations(monkeypatch)
    record, found = run(probed, stage, probe_step=True)
    assert before["memory"]["probe"] is None
    probe = record["memory"]["probe"]
    assert probe["rows"] == {"sft": 4, "grpo": 2}[stage]
    assert (probe["out_of_memory"], probe["micro_batch"]) == (0, 4)
    assert probe["peak_reserved_bytes"] is None
    assert generations == {"sft": [], "grpo": [8] * 3}[stage]  # the probe's, and one a step
    untimed = [
        [{name: value for name, value in line.items() if "time" not in name and "second" not in name} for line in lines]
        for lines in (wanted, found)
    ]
    assert untimed[0] == untimed[1]
    one, other = adapter_of(plain, stage), adapter_of(probed, stage)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_the_probe_had_to_halve_stays_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("sft", tmp_path, "probed")
    with small_memory(monkeypatch, fits=2) as memory:
        record, found = run(recipe, "sft", probe_step=True)
    assert memory.seen == [*LOOK, 4, 2, 2, *[2] * 8]
    assert record["memory"]["probe"]["out_of_memory"] == 1
    assert record["memory"]["probe"]["micro_batch"] == 2
    assert found[0]["micro_batch"] == 2


def test_the_probe_of_grpo_fills_its_completions_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.backends.ladder.policy import PolicyLadder

    plain, lengths = PolicyLadder._generate_single_turn, []

    def spy(self: Any, *args: Any) -> Any:
        found = plain(self, *args)
        lengths.append([len(ids) for ids in found[0]])
        return found

    monkeypatch.setattr(PolicyLadder, "_generate_single_turn", spy)
    run(recipe_of("grpo", tmp_path, "probed", grpo={"max_completion_tokens": 40}), "grpo", probe_step=True)
    assert lengths[0] == [40] * 8
    assert all(min(ones) < 40 for ones in lengths[1:])


def test_the_probe_takes_the_longest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.backends.ladder.sft import SftLadder

    plain, seen = SftLadder.make_pass, []

    def spy(self: Any, model: Any, inputs: Any, items: Any) -> Any:
        seen.append(inputs["attention_mask"].sum(1).tolist())
        return plain(self, model, inputs, items)

    monkeypatch.setattr(SftLadder, "make_pass", spy)
    sft = {"max_steps": 3, "batch_size": 4, "accumulation": 2}  # 24 rows: every row is seen once
    run(recipe_of("sft", tmp_path, "probed", sft=sft), "sft", probe_step=True)
    assert sorted(seen[0]) == sorted(length for lengths in seen[1:] for length in lengths)[-4:]


def test_the_state_of_an_optimiser_is_counted_in_bytes() -> None:
    sizes = [(4096, 4), (100, 4)]
    assert state_bytes("adamw_torch", sizes) == 2 * 4 * 4196
    # 8 bits a moment and one float32 for each block of 256; small tensors stay in 32 bits.
    assert state_bytes("adamw_8bit", sizes) == 2 * (4096 + 16 * 4) + 2 * 4 * 100
    assert state_bytes("paged_adamw_8bit", sizes) == 0


@contextmanager
def evaluated(context: Context, fits: int) -> Iterator[tuple[SmallMemory, Any, list[Any]]]:
    prompts = Prompts.of(context.recipe, context.images)
    policy = HfBackend().load(context.recipe, None, trainable=False)
    memory = SmallMemory(fits)
    hook = memory.put_into(policy.model)
    yield memory, policy, [prompts.row(sample) for sample in context.data.test]
    hook.remove()


def test_greedy_answers_are_the_same_in_smaller_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=99) as (_, policy, rows):
        wanted = HfBackend().generate(policy, rows[:7], Sampling(12))
        with evaluated(context, fits=3) as (memory, policy, rows), caplog.at_level(logging.WARNING):
            assert HfBackend().generate(policy, rows[:7], Sampling(12)) == wanted
            assert memory.raised == 2
            assert policy.at_once.most == 2
            assert [line.message for line in caplog.records if line.levelno == logging.WARNING] == [
                "out of memory with 7 answers at once: 4 from here on",
                "out of memory with 4 answers at once: 2 from here on",
            ]
            assert HfBackend().generate(policy, rows[:7], Sampling(12)) == wanted
            assert memory.raised == 2  # the smaller batch stays


def test_several_answers_to_one_question_are_written_in_turns(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=2) as (_, policy, rows):
        groups = HfBackend().generate(policy, rows[:2], Sampling(8, temperature=1.0, count=5))
        assert [len(group) for group in groups] == [5, 5]
        assert policy.at_once.most == 2


def test_one_answer_that_does_not_fit_is_told_with_advice(tmp_path: Path) -> None:
    with context_of(small_recipe(tmp_path)) as context, evaluated(context, fits=0) as (_, policy, rows):
        with pytest.raises(ModelError, match=r"one answer at least.*max_side"):
            HfBackend().generate(policy, rows[:2], Sampling(8))
        assert not policy.model.training


def test_only_a_lack_of_memory_is_caught() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert attempt(lambda: fail(torch.OutOfMemoryError("CUDA out of memory"))) is None
    assert (
        attempt(lambda: fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))) is None
    )
    with pytest.raises(RuntimeError, match="size mismatch"):
        attempt(lambda: fail(RuntimeError("size mismatch")))


def test_halving_ends_at_one() -> None:
    rows = AtOnce()
    halved = []
    while rows.halve(rows.of(13)):
        halved.append(rows.most)
    assert halved == [7, 4, 2, 1]
    assert rows.errors == 5


def test_a_batch_is_cut_with_each_rows_pictures() -> None:
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 4]])
    batch = {
        "input_ids": torch.arange(8).reshape(4, 2),
        "num_images": [1, 0, 2, 0],
        "image_grid_thw": grids,
        "pixel_values": torch.arange(28),  # 4 + 8 + 16 patches
        "num_items_in_batch": torch.tensor(5),
    }
    first, second = cut(batch, 2)
    assert first["pixel_values"].tolist() == [0, 1, 2, 3]
    assert second["pixel_values"].tolist() == list(range(4, 28))
    assert second["image_grid_thw"].tolist() == grids[1:].tolist()
    assert second["num_items_in_batch"] == 5
    parts = cut(batch, 1)
    assert [rows_of(part) for part in parts] == [1, 1, 1, 1]
    assert "pixel_values" not in parts[1]
    with pytest.raises(TrainingError, match="each row's pixels are known"):
        cut({**batch, "pixel_values": torch.arange(27)}, 2)
    with pytest.raises(TrainingError, match="each row's pixels are known"):
        cut({name: value for name, value in batch.items() if name != "num_images"}, 2)


def test_figures_of_parts_are_weighed_by_what_they_are_means_of() -> None:
    parts = [{"entropy": 1.0, "clip_ratio/low_min": 0.5}, {"entropy": 4.0, "clip_ratio/low_min": 0.1}]
    found = put_together(parts, {"tokens": [2.0, 1.0]})
    assert found == {"entropy": pytest.approx(2.0), "clip_ratio/low_min": 0.1}


@pytest.mark.parametrize("family", ["tiny", "qwen3_vl"])
def test_checkpointing_leaves_a_frozen_vision_tower_without_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, request: pytest.FixtureRequest
) -> None:
    """And the adapter's gradients are those without checkpointing."""
    name = family if family == "tiny" else str(build(family, request.getfixturevalue("shared_data"), tmp_path))
    gradients, needed = {}, []
    for checkpointing in (False, True):
        tables = {
            "model": {"name": name, "max_tokens": 600},
            "sft": {"max_steps": 1, "gradient_checkpointing": checkpointing},
        }
        recipe = recipe_of("sft", tmp_path, f"checkpointing-{checkpointing}", **tables)
        load = HfBackend.load

        def watched(self: HfBackend, *args: Any, load: Any = load, **options: Any) -> Any:
            policy = load(self, *args, **options)
            from toolkit.backends.meter import _tower

            tower = _tower(policy.model.get_base_model())
            assert tower is not None
            for module in tower.modules():
                module.register_forward_hook(lambda *seen: needed.append(_requires(seen[1]) or _requires(seen[2])))
            return policy

        with monkeypatch.context() as patch:
            patch.setattr(HfBackend, "load", watched)
            _, (line,) = run(recipe, "sft")
        gradients[checkpointing] = (line["loss"], line["grad_norm"], adapter_of(recipe, "sft"))
    assert needed
    assert not any(needed)
    (loss, norm, plain), (loss_again, norm_again, checkpointed) = gradients[False], gradients[True]
    assert (loss_again, norm_again) == (pytest.approx(loss), pytest.approx(norm))
    for key in plain:
        torch.testing.assert_close(checkpointed[key], plain[key])


def _requires(values: Any) -> bool:
    if isinstance(values, torch.Tensor):
        return values.requires_grad
    if isinstance(values, Mapping):
        return any(map(_requires, values.values()))
    return isinstance(values, list | tuple) and any(map(_requires, values))


def test_rollouts_hang_no_hooks_on_the_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    load = HfBackend.load

    def loaded(self: HfBackend, *args: Any, **options: Any) -> Any:
        policy = load(self, *args, **options)
        kept.append(policy)
        return policy

    monkeypatch.setattr(HfBackend, "load", loaded)
    run(recipe_of("grpo", tmp_path, "hooks", grpo={"gradient_checkpointing": True}), "grpo")
    assert not kept[0].model.get_input_embeddings()._forward_hooks
