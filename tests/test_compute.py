"""Usage of runs: FLOPs by formula and by torch, records of killed processes, sums and reports."""

import dataclasses
import json
import logging
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from tests.helpers.problems import raises, warnings_in
from tests.helpers.recipes import make_recipe
from tests.helpers.training import length_reward, small_recipe
from toolkit.cli.commands import app
from toolkit.errors import Interrupted, RecipeError, RunError, TrainingError
from toolkit.evaluation.predict import predict
from toolkit.models import choose_backend
from toolkit.models.backend import Row, Sampling
from toolkit.models.flops import flop_counter, parameter_counts, register_usage_hooks
from toolkit.models.messages import conversation
from toolkit.pipeline import run_recipe
from toolkit.pipeline.stages import STAGES
from toolkit.recipe import Run, dump_recipe
from toolkit.reporting.compute import compute_blocks, compute_json
from toolkit.reporting.ledger import Ledger, read_ledger
from toolkit.reporting.markdown import markdown_blocks
from toolkit.runfolder import SCHEMA_VERSION, RunFolder, RunSession, RunState, read_json, write_json
from toolkit.runfolder.usage import (
    Counts,
    ParameterCount,
    Usage,
    count,
    counts,
    note_bypass,
    read_compute,
    recording,
    summarise_compute,
    total,
)
from toolkit.runfolder.usage import recorder as recorder_module
from toolkit.runfolder.usage.energy import INSTALL, EnergyMeter

EMPTY = Usage().to_json()


@pytest.fixture(autouse=True)
def no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable codecarbon, except in tests that enable it."""
    monkeypatch.setattr(recorder_module, "ENERGY_AFTER", 1e9)


def test_the_formula_is_six_n_for_full_training_and_a_little_over_four_n_for_an_adapter() -> None:
    # 3 positions, 10 x 20 parameters. Forward 2 n, backward 2 n for the inputs and 2 n for the parameters.
    full = nn.Linear(10, 20)
    assert parameter_counts(full) == ParameterCount(200, 200)
    assert parameter_counts(full).forward(3) == 2 * 200 * 3
    assert parameter_counts(full).forward_backward(3, checkpointing=False) == 6 * 200 * 3
    # Frozen, with an adapter of rank 2 beside it: 10 x 2 + 2 x 20 = 60 weights more, which are trained.
    full.requires_grad_(False)
    adapted = nn.ModuleList([full, nn.Linear(10, 2), nn.Linear(2, 20)])
    assert parameter_counts(adapted) == ParameterCount(260, 60)
    assert parameter_counts(adapted).forward_backward(3, checkpointing=False) == (4 * 260 + 2 * 60) * 3
    assert parameter_counts(adapted).forward_backward(3, checkpointing=True) == (6 * 260 + 2 * 60) * 3


def test_embeddings_and_norms_are_no_multiplications() -> None:
    assert parameter_counts(nn.ModuleList([nn.Embedding(100, 8), nn.LayerNorm(8)])) == ParameterCount(0, 0)


def test_merged_positions_count_a_fraction_of_the_parameters() -> None:
    tower = nn.ModuleDict({"block": nn.Linear(4, 4), "merger": nn.Linear(16, 8)})
    # 2 x 2 patches of width 4 become one position of width 16: 16 weights a patch, and 128 / 4.
    assert parameter_counts(tower, merged=4).all == 16 + 32


class Attention(nn.Module):
    """One attention layer with the decoder, head and accessors of a language model in transformers."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.decoder = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in "qkvo"})
        self.decoder.forward = self._attend

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self.decoder[name](x) for name in "qkv")
        weights: torch.Tensor = torch.softmax(query @ key.transpose(-1, -2), -1) @ value
        return self.decoder["o"](weights)  # type: ignore[no-any-return]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.embed(ids)))  # type: ignore[no-any-return]


@pytest.mark.slow
@settings(deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(2, 9), width=st.sampled_from([4, 8]), words=st.integers(3, 20))
def test_formula_and_torchs_counter_differ_by_attention_alone(rows: int, length: int, width: int, words: int) -> None:
    model = Attention(width, words)
    register_usage_hooks(model)
    before = counts()
    with flop_counter() as counter:
        model(torch.zeros(rows, length, dtype=torch.long)).sum().backward()
    found = counts() - before
    assert (found.trained_tokens, found.read_tokens) == (rows * length, 0)
    assert found.training == 6 * (4 * width * width + width * words) * rows * length
    # Q K^T and its product with V: 2 x 2 x length x length x width per row, forward, and twice that backward.
    assert counter.get_total_flops() - found.training == 3 * 2 * 2 * rows * length * length * width


def test_a_pass_without_gradients_counts_as_read_or_generated() -> None:
    model = Attention(4, 5)
    register_usage_hooks(model)
    before = counts()
    with torch.no_grad():
        model(torch.zeros(2, 7, dtype=torch.long))
        model(torch.zeros(2, 1, dtype=torch.long))
    found = counts() - before
    assert (found.read_tokens, found.generated_tokens, found.trained_tokens) == (14, 2, 0)
    assert found.inference == 2 * (4 * 16 + 20) * 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run with two steps of SFT and GRPO, evaluations, and a prediction."""
    folder = tmp_path_factory.mktemp("compute")
    tables = {"sft": {"max_steps": 2}, "grpo": {"max_steps": 2}, "rewards": length_reward(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder_module, "ENERGY_AFTER", 1e9)
        run = run_recipe(small_recipe(folder, tables), STAGES).run
        image = next((run.path / "synthetic").rglob("*.png"))
        predict(run, "How large is the heart?", [image], ["A. Normal", "B. Large"])
    return run


@pytest.mark.slow
def test_stages_have_their_tokens_images_and_completions(finished: RunFolder) -> None:
    record = read_compute(finished.compute_file)
    assert [(start.command, start.outcome) for start in record.sessions] == [
        ("run", "finished"),
        ("predict", "finished"),
    ]
    found = {name: used.counts for name, used in record.stages().items()}
    assert list(found) == ["data", "evaluate-before", "sft", "evaluate-sft", "grpo", "evaluate-grpo", "predict"]
    # 2 steps of 2 passes with 4 rows of one image.
    assert found["sft"].trained_images == 16
    # Before the first step: one row twice with its image, and once with the image of another row.
    assert found["sft"].read_images == 3
    assert found["sft"].generated_tokens == 0
    # 2 steps of 2 prompts, whose images are read once each. Three passes check before the first step that images
    # matter, and one pass of the first batch has negated pixels.
    assert found["grpo"].trained_images == 0
    assert found["grpo"].read_images == 4 + 3 + 1
    assert found["grpo"].generated_tokens > 0
    for name in ("evaluate-before", "evaluate-sft", "evaluate-grpo"):
        assert (found[name].answers, found[name].read_images, found[name].trained_tokens) == (12, 12, 0)
        assert 0 < found[name].generated_tokens <= 12 * 16
    assert found["predict"].answers == 1
    assert found["data"] == Counts()


def test_stages_add_up_to_almost_the_whole_session(finished: RunFolder) -> None:
    start = read_compute(finished.compute_file).sessions[0]
    parts = total(stage.used for stage in start.stages)
    assert parts.counts.to_json() == pytest.approx(start.used.counts.to_json())
    assert 0.9 * start.used.wall < parts.wall <= start.used.wall
    assert 0 < parts.cpu <= start.used.cpu
    assert start.used.memory is not None
    assert start.used.memory > 100e6
    assert (start.used.energy, start.used.co2) == (None, None)
    if not torch.cuda.is_available():
        assert (start.used.gpu, start.used.gpu_memory) == (0, None)


def test_torchs_counter_measures_one_pass_of_a_stage_and_agrees_with_the_formula(finished: RunFolder) -> None:
    stages = read_compute(finished.compute_file).stages()
    for name in ("sft", "grpo"):
        found = stages[name].counts
        assert 0 < found.counted_tokens < found.trained_tokens / 2
        # The counter adds attention, about a quarter with about 120 positions of width 128. It lacks the gradient of
        # the first input, which an adapter does not need.
        assert 1.1 < found.counted_flops / found.counted_formula < 1.4
        assert found.counter_training is not None
        assert 1.0 < found.counter_training / found.training < 1.5
    assert stages["evaluate-sft"].counts.counter_training is None


def test_attention_on_a_cpu_counts_like_its_matrix_products() -> None:
    query, key = torch.rand(2, 3, 64, 16), torch.rand(2, 3, 40, 16)
    with flop_counter() as fused:
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    with flop_counter() as products:
        torch.softmax(query @ key.transpose(-1, -2), -1) @ key
    assert fused.get_total_flops() == products.get_total_flops() == 2 * 2 * (2 * 3 * 64 * 40 * 16)


def test_flops_of_prefill_agree_with_torchs_counter(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    backend = choose_backend(recipe.model)
    policy = backend.load(recipe, None, trainable=False)
    before = counts()
    with flop_counter() as counter:
        backend.generate(policy, [Row(conversation("How large is the heart?", 0), [])] * 2, Sampling(8))
    found = counts() - before
    assert found.answers == 2
    assert found.generated_tokens > 0
    assert counter.get_total_flops() == pytest.approx(found.inference, rel=0.1)


@pytest.mark.slow
def test_gradient_checkpointing_adds_one_forward_pass(tmp_path: Path) -> None:
    found = {}
    for switched in (False, True):
        tables = {"sft": {"max_steps": 1, "gradient_checkpointing": switched}}
        recipe = small_recipe(tmp_path / str(switched), tables)
        only_sft = make_recipe({**recipe.model_dump(exclude_unset=True), "grpo": None, "evaluate": None})
        run = run_recipe(only_sft, STAGES).run
        found[switched] = read_compute(run.compute_file).stages()["sft"].counts
    plain, again = found[False], found[True]
    assert plain.trained_tokens == again.trained_tokens
    # From 4 n and the adapter to 6 n and the adapter. The head is not recomputed.
    assert 1.2 < again.language_training / plain.language_training < 1.5
    assert 1.1 < again.counted_flops / again.counted_formula < 1.4


@pytest.mark.slow
def test_counting_does_not_change_the_trained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(name: str) -> bytes:
        recipe = small_recipe(tmp_path / name, {"sft": {"max_steps": 2}})
        only_sft = make_recipe({**recipe.model_dump(exclude_unset=True), "grpo": None, "evaluate": None})
        run = run_recipe(only_sft, STAGES).run
        return (run.weights_folder("sft") / "adapter_model.safetensors").read_bytes()

    counted = weights("counted")
    monkeypatch.setattr("toolkit.training.trl_trainer.count_one_pass", lambda trainer, policy: None)
    monkeypatch.setattr("toolkit.models.hf.register_usage_hooks", lambda model: None)
    assert weights("plain") == counted


def compute_text(ledger: Ledger) -> str:
    return "\n".join(markdown_blocks(compute_blocks(ledger)))


def folder_of(tmp_path: Path, name: str = "one", **settings: Any) -> RunFolder:
    """Return a run folder with the files that `toolkit report` reads."""
    run = RunFolder(tmp_path / name)
    run.path.mkdir(parents=True)
    tables = {"run": {"name": name, **settings}, "data": {"task": "mcq", "train": "rows.json"}, "sft": {}}
    run.recipe_file.write_text(dump_recipe(make_recipe(tables)))
    write_json(run.run_file, RunState(SCHEMA_VERSION, 1, {}, (RunSession("now", {}),)))
    return run


def test_only_the_usage_of_the_block_is_recorded(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    count(answers=5)
    with recording(run, Run(name="one"), "run") as recorder:
        with recorder.stage("a"):
            count(answers=2)
            time.sleep(0.05)
        count(answers=1)
        with recorder.stage("b"):
            count(answers=4)
    start = read_compute(run.compute_file).sessions[0]
    assert start.used.counts.answers == 7
    assert {stage.name: stage.used.counts.answers for stage in start.stages} == {"a": 2, "b": 4}
    assert start.stages[0].used.wall >= 0.05
    assert start.outcome == "finished"
    assert not [thread for thread in threading.enumerate() if thread.name == "compute"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (TrainingError("training.failed", "x"), "failed"),
        (Interrupted(signal.SIGTERM, "saved"), "interrupted"),
        (OSError("x"), "failed"),
    ],
)
def test_the_outcome_of_a_session_is_recorded(tmp_path: Path, error: Exception, outcome: str) -> None:
    run = folder_of(tmp_path)
    with pytest.raises(type(error)), recording(run, Run(name="one"), "run") as recorder, recorder.stage("sft"):
        raise error
    start = read_compute(run.compute_file).sessions[0]
    assert start.outcome == outcome
    assert [stage.name for stage in start.stages] == ["sft"]


KILLED = """
import os, sys, time
from pathlib import Path
from toolkit.runfolder.usage import count, recording
from toolkit.recipe import Run
from toolkit.runfolder import RunFolder
with recording(RunFolder(Path(sys.argv[1])), Run(name="one"), "run", beat=0.05) as recorder:
    with recorder.stage("sft"):
        count(trained_tokens=7)
        begun = time.monotonic()
        while time.monotonic() - begun < 0.6:
            sum(range(1000))
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_killed_process_has_recorded_its_hours(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(run.path)], cwd=Path.cwd(), check=False)
    assert done.returncode == -signal.SIGKILL
    start = read_compute(run.compute_file).sessions[0]
    assert start.outcome == "unfinished"
    assert start.used.wall > 0.3
    assert start.used.cpu > 0
    assert [(stage.name, stage.used.counts.trained_tokens) for stage in start.stages] == [("sft", 7)]


def test_a_resumed_run_adds_up_and_counts_nothing_twice(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    for answers in (3, 4):
        with recording(run, Run(name="one"), "run", beat=0.02) as recorder, recorder.stage("evaluate-sft"):
            count(answers=answers)
            time.sleep(0.2)  # Several lines are written.
    lines = run.compute_file.read_text().splitlines()
    assert sum('"beat"' in line for line in lines) >= 4
    record = read_compute(run.compute_file)
    assert len(record.sessions) == 2
    assert record.used.counts.answers == 7
    assert record.stages()["evaluate-sft"].counts.answers == 7
    assert 0.4 <= record.used.wall < 1.5


@pytest.mark.slow
def test_a_resumed_stage_counts_its_work_once(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, {"sft": {"max_steps": 2}})
    only_sft = make_recipe({**recipe.model_dump(exclude_unset=True), "grpo": None, "evaluate": None})
    run = run_recipe(only_sft, STAGES).run
    once = read_compute(run.compute_file).stages()["sft"].counts.trained_tokens
    run_recipe(only_sft, STAGES)  # All stages have finished.
    record = read_compute(run.compute_file)
    assert [start.outcome for start in record.sessions] == ["finished", "finished"]
    assert record.stages()["sft"].counts.trained_tokens == once


def test_an_unfinished_line_is_skipped_and_reported(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    with recording(run, Run(name="one"), "run"):
        count(answers=1)
    whole = run.compute_file.read_text()
    run.compute_file.write_text(whole + whole[:50])
    with recording(run, Run(name="one"), "evaluate"):
        count(answers=1)
    record = read_compute(run.compute_file)
    assert (len(record.sessions), record.damaged) == (2, 1)
    assert record.used.counts.answers == 2


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"3",
        b"null",
        b'{"event": "beat", "start": "unknown", "used": ' + json.dumps(EMPTY).encode() + b"}",
        b'{"event": "end", "start": "one"}',
        json.dumps({"event": "beat", "start": "one", "used": {**EMPTY, "wall": -1}}).encode(),
        json.dumps({"event": "beat", "start": "one", "used": {**EMPTY, "cpu": float("nan")}}).encode(),
        json.dumps({"event": "beat", "start": "one", "used": {**EMPTY, "wall": "long"}}).encode(),
        json.dumps({"event": "beat", "start": "one", "used": {**EMPTY, "counts": {"wishes": 1}}}).encode(),
        json.dumps({"event": "beat", "start": "one", "used": {**EMPTY, "gpu": None}}).encode(),
        b'{"event": "machine", "start": "one", "facts": {"gpus": [{"cores": 1}]}}',
        b'{"event": "machine", "start": "one", "facts": {"energy": "much"}}',
        b'{"event": "machine", "start": "one", "facts": {"unseen": 5}}',
        b'{"event": "machine", "start": "one", "facts": {"bypassed": {"vision cache": "often"}}}',
    ],
)
def test_a_corrupt_line_is_counted_and_skipped(tmp_path: Path, line: bytes) -> None:
    run = made_up(tmp_path, "one", wall=10)
    with run.compute_file.open("ab") as handle:
        handle.write(line + b"\n")
    record = read_compute(run.compute_file)
    assert (record.damaged, record.used.wall) == (1, 10)


@pytest.mark.parametrize(
    "content", ["[]", '{"result": {"rows": [1, 2]}}', '{"result": {"rows": {"train": null}}}', "{"]
)
def test_a_run_with_a_corrupt_data_record_is_in_the_report(tmp_path: Path, content: str) -> None:
    run = made_up(tmp_path, "one", wall=3600)
    (run.stage_folder("data") / "done.json").write_text(content)
    ledger = read_ledger([tmp_path])
    assert ledger.used.wall == 3600
    assert "rows not read" in compute_text(ledger)


def test_an_unwritable_usage_record_is_reported_once_and_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = folder_of(tmp_path)
    run.compute_file.mkdir()
    with caplog.at_level(logging.WARNING, "toolkit"), recording(run, Run(name="one"), "run") as recorder:
        recorder.write_line("beat")
    (problem,) = warnings_in(caplog)
    assert (problem.code, problem.place) == ("run.usage_not_recorded", str(run.compute_file))
    assert len(caplog.messages) == 1


def test_the_first_of_several_processes_counts_for_all(tmp_path: Path) -> None:
    stages: dict[str, dict[str, Any]] = {
        "sft": {"wall": 10, "cpu": 8, "gpu": 10, "counts": {"trained_tokens": 100}},
        "evaluate-sft": {"cpu": 1},
    }
    run = made_up(tmp_path, "one", wall=20, cpu=10, gpu=20, counts={"trained_tokens": 100}, stages=stages, processes=2)
    used = read_compute(run.compute_file).used
    # Both processes hold a GPU and train. Only the first one evaluates: 8 + 8 + 1 + 1.
    assert (used.wall, used.gpu, used.cpu, used.counts.trained_tokens) == (20, 40, 18, 200)


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=2))
def test_readings_of_clocks_add_up(values: list[int]) -> None:
    first, second = sorted(values)

    def reading(number: int) -> Usage:
        sums = ("wall", "cpu", "gpu", "energy", "energy_wall", "co2", "co2_energy")
        counted = Counts(**{field.name: number for field in dataclasses.fields(Counts)})
        return Usage(**dict.fromkeys(sums, number), counts=counted)

    assert reading(first) + reading(second).since(reading(first)) == reading(second)


@pytest.mark.slow
def test_energy_is_measured_without_output_files_or_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    energy = pytest.importorskip("codecarbon") and EnergyMeter

    def reject(*args: object, **options: object) -> None:
        raise AssertionError("codecarbon must not use the network")

    monkeypatch.setattr("socket.socket.connect", reject)
    monkeypatch.setattr("socket.getaddrinfo", reject)
    monkeypatch.setenv("CODECARBON_ELECTRICITYMAPS_API_TOKEN", "a-token")
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://localhost:1/")
    monkeypatch.setenv("CODECARBON_OUTPUT_METHODS", "csv,api")
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = {}
    for country in (None, "DEU", "QQQ"):
        found[country] = energy(country)
    time.sleep(1.2)
    readings = {country: one.read() for country, one in found.items()}
    for one in found.values():
        one.stop()
    assert all(reading.energy is not None and reading.energy > 0 for reading in readings.values())
    # Without a known country, codecarbon would use the world average.
    assert readings[None].co2 is None
    assert readings["QQQ"].co2 is None
    german = readings["DEU"]
    assert german.co2 is not None
    assert german.energy is not None
    assert 0.1 < german.co2 / german.energy < 1  # kg per kWh
    assert found["DEU"].describe()["country"] == "Germany"
    assert found["DEU"].describe()["memory"] == "estimated (size)"
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_with_codecarbon_has_its_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("codecarbon")
    monkeypatch.setattr(recorder_module, "ENERGY_AFTER", 0.0)
    run = folder_of(tmp_path)
    with recording(run, Run(name="one", country="FRA"), "run", beat=0.1) as recorder:
        wait_for(lambda: recorder._energy is not None)
        with recorder.stage("sft"):
            time.sleep(1.0)
    start = read_compute(run.compute_file).sessions[0]
    stage = start.stages[0].used
    assert start.used.energy is not None
    assert stage.energy is not None
    assert stage.co2 is not None
    assert 0 < stage.energy <= start.used.energy
    assert stage.energy_wall == pytest.approx(stage.wall, abs=0.2)
    assert stage.energy_wall < start.used.wall
    text = compute_text(read_ledger([run.path]))
    assert "CO2 by the electricity mix of France" in text


def test_savings_that_were_bypassed_are_in_the_record_the_results_and_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made_up(tmp_path, "one", wall=10)
    with caplog.at_level(logging.INFO, "toolkit"):
        note_bypass("vision cache", "of an earlier session")
        for calls in (2, 1):
            with recording(run, Run(name="one"), "run"):
                for _ in range(calls):
                    note_bypass("vision cache", "the tower is trained")
        with recording(run, Run(name="one"), "evaluate") as recorder:
            with recorder.stage("grpo"):
                note_bypass("shared prefill", "the cache is a StaticCache")
            before_the_end = summarise_compute(run.compute_file)
    assert before_the_end is not None
    found = {"shared prefill: the cache is a StaticCache": 1, "vision cache: the tower is trained": 3}
    assert before_the_end.bypassed_savings == found
    record = read_compute(run.compute_file)
    assert [session.machine.get("bypassed") for session in record.sessions[1:]] == [
        {"vision cache: the tower is trained": 2},
        {"vision cache: the tower is trained": 1},
        {"shared prefill: the cache is a StaticCache": 1},
    ]
    summary = summarise_compute(run.compute_file)
    assert summary is not None
    assert summary.bypassed_savings == found
    ledger = read_ledger([tmp_path])
    assert compute_json(ledger)["bypassed_savings"] == found
    assert "vision cache: the tower is trained (3 calls)" in compute_text(ledger)
    assert sum("the tower is trained" in message for message in caplog.messages) == 2  # once in each session


def test_a_codecarbon_that_cannot_start_is_reported_once_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codecarbon = pytest.importorskip("codecarbon")

    def reject(**options: object) -> None:
        raise RuntimeError("Driver/library version mismatch")

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", reject)
    monkeypatch.setattr(recorder_module, "ENERGY_AFTER", 0.0)
    run = folder_of(tmp_path)
    with recording(run, Run(name="one"), "run", beat=0.1):
        wait_for(lambda: sum('"beat"' in line for line in run.compute_file.read_text().splitlines()) > 3)
    lines = [json.loads(line) for line in run.compute_file.read_text().splitlines()]
    problem_text = "codecarbon cannot start: RuntimeError: Driver/library version mismatch"
    notes = [n for n, line in enumerate(lines) if line.get("facts", {}).get("energy_problem")]
    assert [lines[n]["facts"]["energy_problem"] for n in notes] == [problem_text]
    assert sum(line["event"] == "beat" for line in lines[notes[0] :]) > 2  # The thread still runs.
    (problem,) = warnings_in(caplog)
    assert problem.code == "run.energy_not_measured"
    assert problem.rule.endswith(problem_text)
    assert len(caplog.records) == 1
    assert f"not measured: {problem_text}" in compute_text(read_ledger([run.path]))


def wait_for(true: Any) -> None:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.05)


def test_without_codecarbon_the_report_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "is_installed", lambda: False)
    run = folder_of(tmp_path)
    with recording(run, Run(name="one"), "run"):
        pass
    text = compute_text(read_ledger([run.path]))
    assert f"not measured: {INSTALL}" in text.replace("\\", "")
    figures = compute_json(read_ledger([run.path]))["runs"][0]
    assert (figures["energy_kwh"], figures["co2_kg"]) == (None, None)


def made_up(
    folder: Path,
    name: str,
    *,
    outcome: str | None = "finished",
    purpose: str = "training",
    stages: dict[str, dict[str, Any]] | None = None,
    processes: int = 1,
    **used: Any,
) -> RunFolder:
    """Write a run with one session. Each stage has its own line."""
    run = RunFolder(folder / name)
    if not run.path.exists():
        run = folder_of(folder, name)
    begun = {"command": "run", "purpose": purpose, "processes": processes, "versions": {}, "energy": None}
    machine = {"cpu": "A CPU", "cores": 4, "cores_allowed": 4, "memory_gb": 16.0, "disk_gb": 100, "disk_free_gb": 50}
    lines = [{"event": "start", "start": name, "time": "t", "used": EMPTY, "machine": machine, **begun}]
    for number, (stage, own) in enumerate((stages or {}).items(), start=1):
        part = {"number": number, "name": stage, "used": {**EMPTY, **own}}
        lines.append({"event": "stage", "start": name, "time": "t", "used": EMPTY, "stage": part})
    last = {"event": "end", "outcome": outcome} if outcome else {"event": "beat"}
    lines.append({**last, "start": name, "time": "t", "used": {**EMPTY, **used}})
    run.compute_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Return runs: training 10 h, search 4 h, ablation 3 h, failed 2 h, killed 1 h, and one of an old version."""
    runs = tmp_path / "runs"
    hour = 3600
    evaluation = {"wall": 360, "cpu": 720, "gpu": 360, "counts": {"answers": 500, "language_inference": 1e12}}
    measured = {**evaluation, "energy": 0.05, "energy_wall": 360}
    made_up(runs, "main", wall=9 * hour, cpu=18 * hour, gpu=9 * hour, energy=2.0, energy_wall=9 * hour,
            stages={"evaluate-before": evaluation, "evaluate-sft": measured, "evaluate-grpo": measured})  # fmt: skip
    made_up(runs, "main.old-1", wall=hour, cpu=2 * hour, gpu=hour, stages={"evaluate-before": evaluation})
    made_up(runs, "sweep", purpose="search", wall=4 * hour, cpu=4 * hour)
    made_up(runs, "without", purpose="ablation", wall=3 * hour, cpu=3 * hour, gpu=3 * hour)
    made_up(runs, "broke", outcome="failed", wall=2 * hour, cpu=2 * hour, gpu=2 * hour)
    made_up(runs, "killed", outcome=None, purpose="search", wall=hour, cpu=hour)
    folder_of(runs, "older")  # This version did not record usage.
    (runs / "no run").mkdir()
    return runs


def test_the_ledger_adds_up_by_purpose(four: Path) -> None:
    found = compute_json(read_ledger([four]))
    hours = {
        purpose: (part["runs"], part["wall_hours"], part["gpu_hours"]) for purpose, part in found["purposes"].items()
    }
    assert hours == {
        "training": (2, 10, 10),
        "search": (1, 4, 0),
        "ablation": (1, 3, 3),
        "dry_run": (0, 0, 0),
        "failed or unfinished": (2, 3, 2),
    }
    assert found["total"]["wall_hours"] == 20
    assert found["total"]["cpu_hours"] == 18 + 2 + 4 + 3 + 2 + 1
    assert found["purposes"]["training"]["fractions"] == {
        "wall": 0.5,
        "cpu": pytest.approx(20 / 30),
        "gpu": pytest.approx(10 / 15),
    }
    assert sum(part["fractions"]["wall"] for part in found["purposes"].values()) == pytest.approx(1)
    assert found["runs_without_record"] == ["older"]


def test_an_unfinished_run_counts_as_failed_for_any_purpose(four: Path) -> None:
    purposes = {run.name: run.purpose for run in read_ledger([four]).runs}
    assert purposes["broke"] == purposes["killed"] == "failed or unfinished"
    assert purposes["main.old-1"] == "training"


def test_a_run_that_finished_after_a_failure_counts_completely(tmp_path: Path) -> None:
    run = folder_of(tmp_path)
    with pytest.raises(TrainingError), recording(run, Run(name="one", purpose="ablation"), "run"):
        raise TrainingError("training.failed", "x")
    with recording(run, Run(name="one", purpose="ablation"), "run"):
        pass
    with pytest.raises(TrainingError), recording(run, Run(name="one", purpose="ablation"), "evaluate"):
        raise TrainingError("training.failed", "x")
    assert read_ledger([run.path]).runs[0].purpose == "ablation"


def test_the_cost_of_1000_predictions_follows_from_the_evaluations(four: Path) -> None:
    runs = {run["name"]: run["per_1000_predictions"] for run in compute_json(read_ledger([four]))["runs"]}
    # Two evaluations after training of 500 answers and 0.1 h: 1,000 in 0.2 h, 0.4 CPU h, 0.1 kWh, 2e12 FLOPs. The one
    # before training has no energy. It counts only in the run without another evaluation.
    assert runs["main"] == {
        "answers": 1000,
        "wall_hours": pytest.approx(0.2),
        "cpu_hours": pytest.approx(0.4),
        "gpu_hours": pytest.approx(0.2),
        "energy_kwh": pytest.approx(0.1),
        "flops_formula": pytest.approx(2e12),
    }
    assert (runs["main.old-1"]["answers"], runs["main.old-1"]["energy_kwh"]) == (500, None)
    assert runs["sweep"] is None


def test_a_partial_measurement_is_marked(four: Path) -> None:
    text = compute_text(read_ledger([four]))
    total_row = next(line for line in text.splitlines() if line.startswith("| total"))
    assert "2 kWh (over 45% of the time)" in total_row  # 9 of 20 hours
    unknown = " | ".join(["not measured"] * 4)
    assert f"| search | 1 | 4 (20%) | 4 (13%) | 0 (0%) | {unknown} |" in text
    assert "older: no usage record" in text


def test_a_run_that_is_given_twice_counts_once(four: Path) -> None:
    assert read_ledger([four, four / "main"]).used == read_ledger([four]).used


def test_a_copy_of_a_run_is_reported(four: Path) -> None:
    assert "more than once" not in compute_text(read_ledger([four]))
    shutil.copytree(four / "sweep", four / "backup")
    ledger = read_ledger([four])
    assert ledger.copies == compute_json(ledger)["runs_with_copied_sessions"] == ["backup", "sweep"]
    assert "Counted more than once: backup, sweep have common sessions" in compute_text(ledger)


def test_a_run_of_another_version_is_counted_and_named_in_a_folder_and_rejected_alone(four: Path) -> None:
    before = read_ledger([four])
    state = read_json(four / "sweep" / "run.json")
    write_json(four / "sweep" / "run.json", {**state, "schema_version": 0})
    ledger = read_ledger([four])
    assert ledger.used == before.used
    assert ledger.other_versions == compute_json(ledger)["runs_of_other_versions"] == ["sweep"]
    assert "Of another version of the toolkit: 1 run with" in compute_text(ledger)
    with raises(RunError, "run.schema_version") as caught:
        read_ledger([four / "sweep"])
    assert (caught.problem.place, caught.problem.value) == (str(four / "sweep"), 0)


def test_a_path_without_runs_is_rejected(tmp_path: Path) -> None:
    with raises(RunError, "run.none_in_folder") as caught:
        read_ledger([tmp_path])
    assert caught.problem.place == str(tmp_path)
    with pytest.raises(RunError):
        read_ledger([tmp_path / "absent"])


@pytest.mark.parametrize("country", ["DE", "deu", "Germany", ""])
def test_a_country_is_three_capital_letters(tmp_path: Path, country: str) -> None:
    with pytest.raises((RecipeError, ValueError)):
        Run(name="one", country=country)


def test_the_report_of_a_real_run(finished: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["report", str(finished.path), "--format", "markdown"])
    assert (done.exit_code, done.stderr) == (0, "")
    for heading in ("By purpose", "Runs", "Cost of 1,000 predictions", "Tokens, images, FLOPs", "Stages"):
        assert f"\n**{heading}" in done.stdout
    assert CliRunner().invoke(app, ["report", str(finished.path), "--out", str(file)]).exit_code == 0
    assert "| small | training | mcq; train 24, test 12 | tiny, auto, LoRA r 4 |" in done.stdout
    assert "SFT 2 steps, batch 4 x 2, learning rate 0.001; GRPO 2 steps, 2 prompts x 4 completions" in done.stdout
    assert "2 finished" in done.stdout
    written = read_json(file)["compute"]
    assert written["runs"][0]["stages"]["sft"]["flops_training_counter"] > 0
    assert written["runs"][0]["per_1000_predictions"]["answers"] == 24
    assert not list(tmp_path.glob("*.partial"))


def test_no_path_machine_or_user_is_in_the_report(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import platform

    whole = compute_text(read_ledger([finished.path])) + json.dumps(compute_json(read_ledger([finished.path])))
    assert str(finished.path.parent) not in whole
    assert str(Path.home()) + "/" not in whole
    for name in {platform.node(), getpass.getuser()} - {"", "root", "localhost", "toolkit"}:
        assert name not in whole


def test_markdown_is_written_to_a_file_and_another_suffix_is_rejected(finished: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    done = CliRunner().invoke(app, ["report", str(finished.path), "--format", "markdown"])
    CliRunner().invoke(app, ["report", str(finished.path), "--out", str(file)])
    assert file.read_text() == done.stdout
    repeated = CliRunner().invoke(app, ["report", str(finished.path), "--out", str(file)])
    assert (repeated.exit_code, list(tmp_path.glob("*.old-*"))) == (0, [])  # the same text stays as it is
    file.write_text("mine")
    again = CliRunner().invoke(app, ["report", str(finished.path), "--out", str(file)])
    assert isinstance(again.exception, RunError)
    assert (again.exception.code, file.read_text()) == ("output.file_exists", "mine")
    CliRunner().invoke(app, ["report", str(finished.path), "--out", str(file), "--force"])
    assert (tmp_path / "report.md.old-1").read_text() == "mine"
    assert file.read_text() == done.stdout
    rejected = CliRunner().invoke(app, ["report", str(finished.path), "--out", str(tmp_path / "report.pdf")])
    assert isinstance(rejected.exception, RunError)
    assert rejected.exception.code == "run.report_format_unknown"
    assert rejected.exception.value == str(tmp_path / "report.pdf")


def test_corrupt_lines_are_reported(tmp_path: Path) -> None:
    run = made_up(tmp_path, "one", wall=10)
    with run.compute_file.open("a") as handle:
        handle.write("{\n")
    done = CliRunner().invoke(app, ["report", str(run.path), "--format", "markdown"])
    assert "1 line of the usage records skipped: one (1)" in done.stdout


def test_results_have_a_short_compute_section(finished: RunFolder) -> None:
    part = read_json(finished.results_file)["compute"]
    assert part["sessions"] == 1
    assert part["wall_hours"] > 0
    assert part["energy_kwh"] is None
    assert part["damaged_lines"] == 0


def test_the_report_imports_neither_torch_nor_codecarbon(four: Path) -> None:
    code = (
        "import sys; from toolkit.reporting.report import report_runs; from pathlib import Path;"
        "report_runs([Path(sys.argv[1])], form='markdown');"
        "print(sorted({'torch', 'codecarbon', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(four)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
