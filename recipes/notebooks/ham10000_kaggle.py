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
# # Skin lesions in two stages, on Kaggle
#
# A vision-language model with 3 billion parameters (Qwen2.5-VL) learns to classify and locate skin lesions in the
# 10,015 dermoscopic images of HAM10000.
#
# 1. **SFT** on answers that are made from the tables and masks of the dataset.
# 2. **GRPO** with eight completions per prompt. The rewards also distinguish a nearly correct box from a wrong one.
#
# In the notebook's settings, select the accelerator "GPU T4 x2" and enable the internet. One of the two GPUs
# is used. The model is not gated, so no token is needed. Read the licence on its page. A T4 has no bfloat16, so
# it is slower than newer GPUs.
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
# ## Data
#
# Add as inputs a dataset with the images of HAM10000 (`HAM10000_images_part_1`, `HAM10000_images_part_2`) and
# `HAM10000_metadata.csv`, and one with the masks (`HAM10000_segmentations_lesion_tschandl`). The next cell finds
# them by these names in `/kaggle/input`. Without them, a dry run uses synthetic lesions in the same layout.

# %%
os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # one of the two GPUs
INPUT = Path("/kaggle/input")
if DRY_RUN and next(INPUT.rglob("HAM10000_metadata.csv"), None) is None:
    INPUT = Path("synthetic")
    toolkit("data", "synthetic", "lesion", "--out", INPUT, "--train", 60, "--test", 30, "--size", 128)


def find(name):
    """The first file or folder of this name among the inputs."""
    found = next(INPUT.rglob(name), None)
    if found is None:
        raise FileNotFoundError(f"no {name} in {INPUT}: add the data set under Input")
    return found


# %% [markdown]
# One command turns the download into rows: box and outline of each lesion from its mask, its location in words,
# and splits in which **no lesion is in two splits**. Nearly two thousand lesions have several images. With images
# of one lesion in training and test data, the score would be too high.

# %%
ROWS = Path("prepared") / "ham10000"
parts = [word for part in ("1", "2") for word in ("--images", find(f"HAM10000_images_part_{part}"))]
toolkit(
    *("data", "prepare", "ham10000", *parts, "--masks", find("*_segmentation.png").parent),
    *("--metadata", find("HAM10000_metadata.csv"), "--out", ROWS),
)
DATA = [f"data.{split}={ROWS / split}.json" for split in ("train", "validation", "test")]
DATA = [
    word
    for setting in (*DATA, f"data.image_root={find('HAM10000_images_part_1').parent}")
    for word in ("--set", setting)
]

# %% [markdown]
# ## Stage 1: SFT
#
# The settings below keep a first run short. Remove `SHORT` for the whole recipe with three epochs. If a session
# ends before the run, save the version, attach its output as an input, copy its folder `runs` into the working
# directory, and run the cell again. It resumes from the last checkpoint.

# %%
SHORT = ["--set", "evaluate.limit=200"]
toolkit("run", RECIPES / "ham10000_sft.toml", *DRY_RUN, *DATA, *SHORT, "--set", "sft.max_steps=200", hours=8)

# %% [markdown]
# How to read the tables:
#
# - **accuracy**: the fraction of correct diagnoses. Two thirds of HAM10000 are nevi, so always answering "nevus"
#   has an accuracy of 67 % (the *majority baseline*), and 70 % is hardly better. Read the balanced accuracy in
#   `results.json`, which weights the seven diagnoses equally. Chance is 14 %.
# - **box_iou**: the overlap of the box with the reference box, from 0 to 1. From about 0.5 a box counts as found.
# - Brackets are 95 % intervals. A difference is significant if its interval is above 0.

# %% [markdown]
# ## Stage 2: GRPO
#
# It trains the adapter of stage 1. (A dry run starts from the tiny model.)

# %%
EARLIER = ["--set", f"model.adapter={Path('runs') / 'ham10000_sft'}"]
toolkit(
    "run", RECIPES / "ham10000_grpo.toml", *DRY_RUN, *DATA, *SHORT, *EARLIER, "--set", "grpo.max_steps=100", hours=8
)

# %% [markdown]
# Stage 2 should improve the row **after GRPO** of `box_iou` and `mask_iou`. The diagnosis may not change.
#
# ## Read the report
#
# Both stages side by side: scores, training curves, data, plan, hours, RAM and GPU memory. This copy has no texts
# and no images of rows. `report.html` in each run folder also has examples.

# %%
NAMES = [f"ham10000_{stage}{'.dry-run' if DRY_RUN else ''}" for stage in ("sft", "grpo")]
toolkit("report", *(Path("runs") / name for name in NAMES), "--no-examples", "--out", "report.html", "--force")
show("report.html")
