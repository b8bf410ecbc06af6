"""Rows without images beside rows with one or two, in batches of SFT, GRPO and evaluation on the tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.cli import call
from tests.helpers.recipes import make_recipe
from toolkit.models import Backend
from toolkit.models.backend import Row
from toolkit.models.collate import collate
from toolkit.models.messages import conversation

RUN = """
[run]
name = "mixed"
[data]
task = "vqa"
train = "rows.json"
split = { test = 0.3 }
[sft]
max_steps = 1
batch_size = 4
accumulation = 1
[grpo]
max_steps = 1
prompts_per_step = 4
generations = 2
micro_batch = 1
probe_on_failure = "report"
[evaluate]
"""


@pytest.mark.slow
def test_a_run_has_rows_with_and_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    names = [f"i{number}.png" for number in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tmp_path / name)
    images: list[object] = ["", "i0", ["i1.png", "i2"], [], "i3.png", None, "i2", ["i3", "i0"]]
    rows = [{"question": f"q{i}", "answer": ["yes", "no"][i % 2], "image": one} for i, one in enumerate(images * 2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "r.toml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    assert call(["run", "r.toml"]) == 0
    results = json.loads((tmp_path / "runs/mixed/results.json").read_text())
    assert [one["code"] for one in results["data"]["dropped"]] == []
    assert any("no image" in warning for warning in results["data"]["warnings"])
    lines = (tmp_path / "runs/mixed/stages/evaluate-grpo/predictions.jsonl").read_text().splitlines()
    assert len(lines) == results["data"]["rows"]["test"] > 0


def test_the_loss_of_a_row_does_not_depend_on_images_of_other_rows(backend: Backend) -> None:
    """A text row has the same tokens and labels alone, first, and last in a batch with images."""
    policy = backend.load_without_model(
        make_recipe({"run": {"name": "x"}, "data": {"task": "vqa", "train": "a"}, "sft": {}})
    )
    image = Image.new("RGB", (64, 64), "red")
    text = Row(conversation("Is it benign?", 0), [], "yes")
    shown = Row(conversation("What is it?", 2), [image, image], "a naevus")
    alone = collate(policy, [text])
    assert "pixel_values" not in alone
    for rows, place in (([text, shown], 0), ([shown, text], 1)):
        batch = collate(policy, rows)
        kept = batch["attention_mask"][place].bool()
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][place][kept], alone[name][0])
        assert len(batch["pixel_values"]) == 2
