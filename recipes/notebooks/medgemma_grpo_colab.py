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
# # Train MedGemma with GRPO on Colab
#
# MedGemma 4B answers multiple-choice questions about chest X-rays. Here it is trained with GRPO on one GPU, in
# 4 bits, and evaluated on held-out data.
#
# Select a GPU under Runtime, Change runtime type.
#
# **GPU:** an L4 or A100 has bfloat16. The T4 of the free tier does not, and MedGemma overflows in float16, so it
# computes in float32, several times slower. On a T4, start with few optimizer steps, as below.
#
# On a machine without a GPU, or with `TOOLKIT_DRY_RUN=1` in the environment, the cells perform a **dry run**: they do
# the same with a model of 3.5 MB and a few rows, in about a minute. It shows whether data, prompts, rewards
# and export work. Its scores mean nothing.

# %% [markdown]
# ## Setup
#
# The next cell installs the toolkit if it is missing, which takes some minutes. `toolkit(...)` runs a command, and
# prints it as you would type it in a terminal. Commands run in their own processes, so the kernel does not need a
# restart after the installation. `show(...)` shows a report.

# %%
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
from html import escape
from importlib.util import find_spec
from pathlib import Path

from IPython.display import HTML, display

# A wheel, such as "/kaggle/input/wheels/medvlm_toolkit-0.1.0-py3-none-any.whl", or your copy of the repository.
SOURCE = "git+https://github.com/OWNER/toolkit.git"

if find_spec("toolkit") is None:
    install = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*install, "--no-deps", SOURCE], check=True)
    importlib.invalidate_caches()
    pinned = Path(find_spec("toolkit").origin).with_name("constraints.txt")  # the versions that were tested together
    subprocess.run([*install, "medvlm-toolkit", "-c", pinned], check=True)
home = Path(find_spec("toolkit").origin).parent
# In the installed package, or beside the package of a checkout.
RECIPES = next(place / "recipes" for place in (home, home.parent) if (place / "recipes" / "quickstart.toml").is_file())

has_gpu = shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi", "-L"]).returncode == 0
DRY_RUN = ["--dry-run"] if os.environ.get("TOOLKIT_DRY_RUN") == "1" or not has_gpu else []


def toolkit(*words, hours=None):
    """Run one command of the toolkit, print its output, and raise an error if it fails.

    After ``hours`` it receives SIGTERM, finishes its optimizer step, saves its state and exits.
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
        print(f"stopped after {hours} hours with its state saved. The same cell resumes in the next session")
    elif code:
        raise RuntimeError(f"the command failed with exit code {code}. See the lines above")


def show(page):
    """Show a report in a frame of its own."""
    text = escape(Path(page).read_text(encoding="utf-8"))
    display(HTML(f'<iframe srcdoc="{text}" style="width: 100%; height: 900px; border: 0"></iframe>'))


print("a dry run" if DRY_RUN else "the real run", "with the recipes in", RECIPES)

# %% [markdown]
# ## The model's licence
#
# MedGemma is gated: accept the terms on its page of the Hugging Face Hub, create a token there (read access is
# enough), and store it under the key symbol at the left as `HF_TOKEN`, with access for this notebook. The token
# is never printed.

# %%
if not DRY_RUN:
    from google.colab import userdata

    os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")

# %% [markdown]
# ## Data
#
# The three JSON files and the images of ReXVQA must be in one folder. If the folder is missing, a dry run uses
# synthetic X-rays in the same layout, and a real run stops with an error. Copy the
# data to the disk of the machine, not to Drive: reading thousands of small files from Drive takes hours.

# %%
FOLDER = Path("/content/rexvqa")
DATA = []
if FOLDER.is_dir():
    files = {"train": "train_vqa_data.json", "validation": "valid_vqa_data.json", "test": "test_vqa_data.json"}
    places = {split: FOLDER / file for split, file in files.items()} | {"image_root": FOLDER}
    DATA = [word for key, place in places.items() for word in ("--set", f"data.{key}={place}")]
    toolkit("data", "inspect", RECIPES / "medgemma_grpo.toml", *DATA)

# %% [markdown]
# ## Save the run on Drive
#
# A Colab machine is deleted when it disconnects, so the run folder is on your Drive. After a disconnection, run all
# cells again. The training cell resumes from the last checkpoint. The merged model needs about 9 GB on Drive.
# `export.to=["adapter"]` leaves it out.

# %%
RUNS = Path("runs")
if not DRY_RUN:
    from google.colab import drive

    drive.mount("/content/drive")
    RUNS = Path("/content/drive/MyDrive/toolkit-runs")
PLACE = ["--set", f"run.folder={RUNS}", "--set", 'export.to=["adapter"]']

# %% [markdown]
# ## Training
#
# One command runs `recipes/medgemma_grpo.toml`: evaluation on the held-out split, GRPO, the same evaluation again, and
# export. The model generates four completions per prompt. The rewards score the letter, the overlap of the
# explanation with the radiologist's, and the format.
#
# The settings below keep a first run short. Remove `SHORT` for the whole recipe.

# %%
SHORT = ["--set", "data.limit_train=400", "--set", "grpo.max_steps=100", "--set", "evaluate.limit=200"]
toolkit("run", RECIPES / "medgemma_grpo.toml", *DRY_RUN, *DATA, *PLACE, *SHORT)

# %% [markdown]
# ## Read the table
#
# - **majority baseline**: the score of the most frequent answer. A model below it has learned nothing.
# - **before** and **after GRPO**: the score on the same samples before and after training.
# - Brackets are 95 % intervals. With 200 samples they are about +-7 points.
# - **to the row above**: the gain. It is significant if its interval is above 0.
#
# During training, `reward` is the mean reward of the completions. If it does not change over a hundred steps, most
# groups have zero variance and give no gradient.

# %%
RUN = RUNS / ("medgemma_grpo.dry-run" if DRY_RUN else "medgemma_grpo")
for line in (RUN / "metrics.jsonl").read_text().splitlines()[-3:]:
    print(line[:300])

# %% [markdown]
# ## Read the report
#
# Scores, training curves, data, plan, hours, RAM and GPU memory. This copy has no texts and no images of rows.
# `report.html` in the run folder also has examples.

# %%
toolkit("report", RUN, "--no-examples", "--out", "report.html", "--force")
show("report.html")

# %% [markdown]
# The trained adapter is in the run folder in `stages/export/adapter`.
