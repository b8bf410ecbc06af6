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
# # A tour in five minutes
#
# All functions of the toolkit with a tiny model, on a computer without a GPU: inspect data, test rewards, train
# with SFT and GRPO, evaluate on held-out data, predict, and read the report.
#
# The images are synthetic chest X-rays. Their findings are visible, so a model can learn them. They show nothing
# about patients.

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
# ## Inspect the data
#
# A **recipe** is one file with the data, the model and the stages. Here `--set` shortens that of the quickstart.
# `data inspect` reports the rows of each split, unusable rows, leaks (a patient in two splits), and one row as
# the model sees it. The SFT loss covers only the text between ⟦ and ⟧.

# %%
SETTINGS = {
    "run.name": "tour",
    "data.synthetic.train": 800,
    "data.synthetic.test": 300,
    "sft.max_steps": 70,
    "grpo.max_steps": 25,
    "grpo.prompts_per_step": 8,
    "export.to": '["adapter"]',
}
SHORT = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
RECIPE = RECIPES / "quickstart.toml"
toolkit("data", "inspect", RECIPE, *SHORT, "--show", 1)

# %% [markdown]
# ## Test the rewards
#
# GRPO needs a reward for every completion. Here are three completions of one prompt: correct with a reason,
# correct without one, and wrong. `reward test` prints the reward of each with an explanation, before any
# training.

# %%
import json
import tempfile

ROW = {
    "question": "What is the primary finding?",
    "options": ["A. No acute finding", "B. Pneumonia", "C. Cardiomegaly"],
    "correct_answer": "B",
    "correct_answer_explanation": "Patchy opacity in the right lower zone.",
    "Findings": "Patchy opacity in the right lower zone. No fracture.",
    "ImagePath": ["image.png"],
}
FORM = "<start_working_out>{}<end_working_out><SOLUTION>{}</SOLUTION>"
ANSWERS = [FORM.format("Opacity in the right lower zone.", "B - Pneumonia"), "B", FORM.format("It is large.", "C")]
lines = [json.dumps({"sample": ROW, "completion": answer}) for answer in ANSWERS]
answers = Path(tempfile.mkdtemp()) / "answers.jsonl"
answers.write_text("\n".join(lines) + "\n")
toolkit("reward", "test", RECIPE, *SHORT, answers)

# %% [markdown]
# ## Training
#
# SFT, then GRPO. The model is evaluated on the same 300 held-out samples before training and after each stage.
# If you interrupt the cell and run it again, it resumes.

# %%
toolkit("run", RECIPE, *SHORT)

# %% [markdown]
# ## Read the table
#
# - **majority baseline**: the score of the most frequent answer, without the image.
# - **before**: the tiny model has not learned this format, so its score is close to 0.
# - **after SFT** and **after GRPO**: the column *to the row above* is the gain of the stage in percentage points,
#   with a 95 % interval. If the interval contains 0, the gain may be chance, which is likely in this short run.
#   The quickstart itself trains longer and evaluates 1,000 samples.

# %%
from toolkit.pipeline import read_results

results = read_results("runs/tour")
for row in results.rows:
    print(f"{row.label:<18} {row.estimate}")

# %% [markdown]
# During GRPO, `reward` is the mean reward of the completions, and `reward_std` its standard deviation among the
# eight completions of a prompt. A zero-variance group gives no gradient.

# %%
steps = [json.loads(line) for line in Path("runs/tour/metrics.jsonl").read_text().splitlines()]
rewards = [step["reward"] for step in steps if step["stage"] == "grpo" and "reward" in step]
first, last = rewards[:5], rewards[-5:]
print(
    f"mean reward of the first five steps {sum(first) / len(first):.2f}, of the last five {sum(last) / len(last):.2f}"
)

# %% [markdown]
# ## Predict
#
# One test image, its question, the completion of the trained model, and the reference answer.

# %%
record = next(iter(json.loads(Path("runs/tour/synthetic/test.json").read_text()).values()))
options = [word for option in record["options"] for word in ("--option", option)]
image = Path("runs/tour/synthetic") / record["ImagePath"][0]
toolkit("predict", "runs/tour", "--image", image, "--question", record["question"], *options)
print("reference:", record["correct_answer"], "-", record["correct_answer_explanation"])

# %% [markdown]
# ## Read the report
#
# `toolkit run` also wrote `report.html`: one file with scores, differences, training curves, subgroups, examples before
# and after training, data, plan, compute and recipe.

# %%
show("runs/tour/report.html")

# %% [markdown]
# Next: `toolkit new --data rows.csv --out my.toml` writes a recipe for your data. Test it with
# `toolkit run my.toml --dry-run`.
