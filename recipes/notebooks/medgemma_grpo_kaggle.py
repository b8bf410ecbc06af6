# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MedGemma learns from rewards, on Kaggle
#
# MedGemma 4B reads a chest film and answers a multiple-choice question about it. Here it is trained by
# reinforcement learning (GRPO) on one GPU, in 4 bits, and measured on questions that it has never seen.
#
# In the notebook's settings choose the accelerator "GPU T4 x2" and switch the internet on.
#
# **Which GPU.** Kaggle's "T4 x2" gives two cards, of which one is used: the model fits on it, and MedGemma's
# steps are too small to be worth sharing. A T4 cannot compute in bfloat16, and MedGemma overflows in float16,
# so on a T4 everything is computed in float32, several times slower than on a card with bfloat16 (L4, A10, RTX
# 30 and newer). On a T4 begin with few steps, as below, or take a Qwen model, such as that of
# `recipes/ham10000_sft.toml`.
#
# On a machine without a GPU, or with `TOOLKIT_DRY_RUN=1` in the environment, the cells perform a **dry run**: they do
# the same with a model of 3.5 MB and a few rows, in about a minute. That shows whether data, prompts, rewards
# and export work. Its scores mean nothing.

# %% [markdown]
# ## Setting up
#
# The next cell installs the toolkit where it is missing, which takes some minutes, and defines `toolkit(...)`.
# Every call prints the command that you could type into a terminal instead. Commands run in processes of their
# own, so the notebook's kernel need not be restarted after the installation.

# %%
import os
import shlex
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

SOURCE = "https://github.com/OWNER/toolkit.git"  # the address of your copy of this repository

found = find_spec("toolkit")
if found is None:
    home = Path("toolkit-source").absolute()
    subprocess.run(["git", "clone", "--depth", "1", SOURCE, str(home)], check=True)
    pinned = ["-c", str(home / "constraints.txt")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", str(home), *pinned], check=True)
else:
    home = Path(found.origin).parent.parent
RECIPES = home / "recipes"

has_gpu = shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi", "-L"]).returncode == 0
DRY_RUN = ["--dry-run"] if os.environ.get("TOOLKIT_DRY_RUN") == "1" or not has_gpu else []


def toolkit(*words, hours=None):
    """Run one command of the toolkit, show what it says, and stop the notebook where it fails.

    After so many hours it is asked to stop: it finishes its step, saves its state and leaves.
    """
    print("$ toolkit", shlex.join(map(str, words)), flush=True)
    command = [sys.executable, "-m", "toolkit", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stopper = threading.Timer((hours or 1e6) * 3600, process.terminate)
    stopper.daemon = True
    stopper.start()
    for line in process.stdout:
        print(line, end="")
    stopper.cancel()
    code = process.wait()
    if code == 143 and hours is not None:
        print(f"stopped after {hours} hours with its state saved: the same cell goes on in the next session")
    elif code:
        raise RuntimeError(f"the command ended with {code}: the lines above say why")


print("a dry run" if DRY_RUN else "the real run", "with the recipes in", RECIPES)

# %% [markdown]
# ## The model's licence
#
# MedGemma is gated: accept its terms on its page of the Hugging Face Hub, make a token there (read access is
# enough), and store it in this notebook under Add-ons, Secrets as `HF_TOKEN`. The token is never printed.

# %%
os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # one of the two cards
if not DRY_RUN:
    from kaggle_secrets import UserSecretsClient

    os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN")

# %% [markdown]
# ## Data
#
# ReXVQA's three JSON files and its pictures are expected in one folder. Where the folder is missing, a
# dry run works on generated films in the same layout, and a real run stops and says so.

# %%
FOLDER = Path("/kaggle/input/rexvqa")
DATA = []
if FOLDER.is_dir():
    files = {"train": "train_vqa_data.json", "validation": "valid_vqa_data.json", "test": "test_vqa_data.json"}
    places = {split: FOLDER / file for split, file in files.items()} | {"image_root": FOLDER}
    DATA = [word for key, place in places.items() for word in ("--set", f"data.{key}={place}")]
    toolkit("data", "inspect", RECIPES / "medgemma_grpo.toml", *DATA)

# %% [markdown]
# ## Sessions end
#
# Kaggle stops a session after some hours and keeps what lies in `/kaggle/working` when the version is saved. So
# the run is asked to stop before that. To go on, attach the output of that version as an input of the next
# session: the cell below copies it back, and the same training cell goes on from the last saved step.

# %%
RUNS = Path("runs")
PLACE = []
if not (RUNS / "medgemma_grpo").exists():
    places = ("*/runs/medgemma_grpo", "*/*/*/runs/medgemma_grpo")
    for earlier in (folder for place in places for folder in Path("/kaggle/input").glob(place)):
        shutil.copytree(earlier, RUNS / "medgemma_grpo", dirs_exist_ok=True)
        print("goes on from", earlier)

# %% [markdown]
# ## Training
#
# One command does everything in `recipes/medgemma_grpo.toml`: it asks held-out questions, trains, asks the same
# questions again, and writes the weights. For each question the model writes four answers. Each answer is
# scored (the right letter, an explanation that shares words with the radiologist's, the asked format), and the
# model moves towards the better ones of its four.
#
# The settings below keep a first run short: drop `SHORT` for the recipe as it stands.

# %%
SHORT = ["--set", "data.limit_train=400", "--set", "grpo.max_steps=100", "--set", "evaluate.limit=200"]
toolkit("run", RECIPES / "medgemma_grpo.toml", *DRY_RUN, *DATA, *PLACE, *SHORT, hours=8)

# %% [markdown]
# ## What the table says
#
# - **majority baseline**: the score of always giving the most frequent answer. A model below it has learned
#   nothing.
# - **before** and **after GRPO**: the same questions before and after training.
# - The brackets are 95 % intervals. With 200 questions they are wide: about 7 points up and down.
# - **to the row above**: the gain. Believe it where its range lies wholly above 0.
#
# While it trains, watch `reward`: the mean score of the answers. If it stays flat over a hundred steps, the
# answers of a question all score the same, and there is nothing to learn from.

# %%
RUN = RUNS / ("medgemma_grpo.dry-run" if DRY_RUN else "medgemma_grpo")
for line in (RUN / "metrics.jsonl").read_text().splitlines()[-3:]:
    print(line[:300])

# %% [markdown]
# What it cost: hours, memory, and where it can be measured, energy.

# %%
toolkit("report", "compute", RUN)

# %% [markdown]
# The trained adapter and the merged model lie in the run's folder under `stages/export`. Save the version to
# keep them.
