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
# # A tour of five minutes
#
# Everything that the toolkit does for a large model, here with a tiny one, on an ordinary computer without a
# GPU: look at data, try out rewards, train by example and by reward, measure on unseen questions, ask the
# model, and count the cost.
#
# The pictures are drawn chest films. A finding can be seen in them, so there is something to learn; about
# patients they say nothing.

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
# ## What the model will see
#
# A **recipe** is one file that says which data, which model, and which stages. The quickstart's is shortened
# here with `--set`, which replaces single values. `data inspect` reads the rows without training: how many
# there are, what cannot be used, whether a patient stands in two splits, and one row exactly as the model gets
# it. The part between ⟦ and ⟧ is what training by example teaches; the question itself is not learned by heart.

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
# ## What an answer is worth
#
# Training by reward needs a number for every answer. Here are three answers to one question: right with a
# reason, right without one, and wrong. `reward test` says what each earns and why, before any training is spent
# on a reward that does not measure what you meant.

# %%
import json

ROW = {
    "question": "What is the primary finding?",
    "options": ["A. No acute finding", "B. Pneumonia", "C. Cardiomegaly"],
    "correct_answer": "B",
    "correct_answer_explanation": "Patchy opacity in the right lower zone.",
    "Findings": "Patchy opacity in the right lower zone. No fracture.",
    "ImagePath": ["film.png"],
}
FORM = "<start_working_out>{}<end_working_out><SOLUTION>{}</SOLUTION>"
ANSWERS = [FORM.format("Opacity in the right lower zone.", "B - Pneumonia"), "B", FORM.format("It is large.", "C")]
lines = [json.dumps({"sample": ROW, "completion": answer}) for answer in ANSWERS]
Path("answers.jsonl").write_text("\n".join(lines) + "\n")
toolkit("reward", "test", RECIPE, *SHORT, "answers.jsonl")

# %% [markdown]
# ## Training
#
# First by example (SFT), then by reward (GRPO). Before, between and after, the same 300 questions are asked
# about films that the training never saw. If you interrupt it and run the cell again, it goes on where it
# stopped.

# %%
toolkit("run", RECIPE, *SHORT)

# %% [markdown]
# ## What the table says
#
# - **majority baseline** is the score of always giving the most frequent answer, without looking at a film.
# - **before**: the tiny model has never seen this form of answer, so it scores about nothing.
# - **after SFT** and **after GRPO**: what each stage added is in the column *to the row above*, in percentage
#   points. The brackets are 95 % intervals. A gain whose interval contains 0 may be luck: this run is short,
#   and GRPO's few steps may well end like that. The quickstart as it stands trains longer and asks 1,000
#   questions.

# %%
results = json.loads(Path("runs/tour/results.json").read_text())
for row in results["table"]:
    score = row["estimate"]
    print(f"{row['label']:<18} {score['value']:.1%} of {score['n']} [{score['low']:.1%} to {score['high']:.1%}]")

# %% [markdown]
# While GRPO trains, `reward` is the mean score of the answers, and `reward_std` how much the eight answers to a
# question differ. Where they do not differ, nothing is learned.

# %%
steps = [json.loads(line) for line in Path("runs/tour/metrics.jsonl").read_text().splitlines()]
rewards = [step["reward"] for step in steps if step["stage"] == "grpo" and "reward" in step]
first, last = rewards[:5], rewards[-5:]
print(
    f"mean reward of the first five steps {sum(first) / len(first):.2f}, of the last five {sum(last) / len(last):.2f}"
)

# %% [markdown]
# ## Asking the model
#
# One film of the test set, its question, and what the trained model says. The reference answer stands below it.

# %%
record = next(iter(json.loads(Path("runs/tour/synthetic/test.json").read_text()).values()))
options = [word for option in record["options"] for word in ("--option", option)]
picture = Path("runs/tour/synthetic") / record["ImagePath"][0]
toolkit("predict", "runs/tour", "--image", picture, "--question", record["question"], *options)
print("reference:", record["correct_answer"], "-", record["correct_answer_explanation"])

# %% [markdown]
# ## What it cost
#
# Hours, memory, energy where the machine can tell it, and the arithmetic of each stage. The same report comes
# out of a large run, for the table on compute that many conferences ask for.

# %%
toolkit("report", "compute", "runs/tour")

# %% [markdown]
# Next: copy `recipes/quickstart.toml`, point `[data]` at your own files, and try it with `toolkit run my.toml
# --dry-run`.
