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
# A vision-language model of 3 billion parameters (Qwen2.5-VL) learns to name a skin lesion and to say where it
# is, on HAM10000's 10,015 dermoscopic pictures.
#
# 1. **By example** (SFT): it copies the answers that were made from the data set's tables and masks.
# 2. **By reward** (GRPO): it writes eight answers to a picture, each is scored, and it moves towards the better
#    ones. Only here does it learn that a box that is nearly right is better than one that is far off.
#
# In the notebook's settings choose the accelerator "GPU T4 x2" and switch the internet on. One of the two cards
# is used. The model is not gated, so no token is needed; read the licence on its page. A T4 has no bfloat16, so
# computing is slower there than on newer cards.
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
# ## Data
#
# Add as inputs a data set with HAM10000's pictures (`HAM10000_images_part_1`, `HAM10000_images_part_2`) and
# `HAM10000_metadata.csv`, and one with the lesions' outlines (`HAM10000_segmentations_lesion_tschandl`). They
# are looked for by these names anywhere in `/kaggle/input`. Without them a dry run draws lesions in the same
# layout; nobody learns medicine from those.

# %%
os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # one of the two cards
INPUT = Path("/kaggle/input")
if DRY_RUN and next(INPUT.rglob("HAM10000_metadata.csv"), None) is None:
    INPUT = Path("practice")
    toolkit("data", "synthetic", "lesion", "--out", INPUT, "--train", 60, "--test", 30, "--size", 128)


def find(name):
    """The first file or folder of this name among the inputs."""
    found = next(INPUT.rglob(name), None)
    if found is None:
        raise FileNotFoundError(f"no {name} in {INPUT}: add the data set under Input")
    return found


# %% [markdown]
# One command turns the download into rows: the box and the outline of each lesion from its mask, the place in
# words, and splits in which **no lesion stands twice**. Nearly two thousand lesions were photographed more than
# once; if one picture of a lesion were trained on and another asked, the score would look better than the model
# is.

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
# ## Stage 1: by example
#
# The settings below keep a first run short: drop `SHORT` for the recipe as it stands, which goes through the
# pictures three times. Where a session ends before the run does, save the version, attach its output as an
# input, copy its folder `runs` back into the working folder, and call the cell again: it goes on from the last
# saved step.

# %%
SHORT = ["--set", "evaluate.limit=200"]
toolkit("run", RECIPES / "ham10000_sft.toml", *DRY_RUN, *DATA, *SHORT, "--set", "sft.max_steps=200", hours=8)

# %% [markdown]
# Read the tables like this:
#
# - **accuracy** is the share of right diagnoses. Two thirds of HAM10000 are harmless moles, so always answering
#   "nevus" is right for 67 % (the *majority baseline*). A model at 70 % has learned next to nothing: look at
#   the balanced accuracy in `results.json`, which counts each of the seven diagnoses alike; guessing gives 14
#   %.
# - **box_iou** says how well the box fits: 1 is exact, 0 is beside it, and from about 0.5 on one would call it
#   found.
# - The brackets hold the 95 % interval; a difference is believed where its interval lies wholly above 0.

# %% [markdown]
# ## Stage 2: by reward
#
# It goes on with the adapter of stage 1. (A dry run starts from the small model itself.)

# %%
EARLIER = ["--set", f"model.adapter={Path('runs') / 'ham10000_sft'}"]
toolkit(
    "run", RECIPES / "ham10000_grpo.toml", *DRY_RUN, *DATA, *SHORT, *EARLIER, "--set", "grpo.max_steps=100", hours=8
)

# %% [markdown]
# The row **after GRPO** of `box_iou` and `mask_iou` is what stage 2 was for. The diagnosis may stay where it
# was.
#
# What both stages cost:

# %%
toolkit("report", "compute", "runs")
