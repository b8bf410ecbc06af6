"""The Hub: is there a token (its value is never read into a finding), and can the model be had."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit import tiny
from toolkit.doctor.disk import hub_home
from toolkit.doctor.finding import Finding, State
from toolkit.doctor.machine import notebook
from toolkit.doctor.probes import Outcome
from toolkit.recipe import Recipe
from toolkit.recipe.checks import is_folder_name

USUAL = "google/medgemma-4b-it"
"""The model that is asked for where no recipe is named."""
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def asked_model(recipe: Recipe | None) -> str:
    """The Hub name to ask for; empty: the recipe's model is no Hub name."""
    name = USUAL if recipe is None else _model_of(recipe)
    return "" if name == "tiny" or is_folder_name(name) else name


def check_hub(recipe: Recipe | None, outcome: Outcome, environment: Mapping[str, str]) -> Iterator[Finding]:
    """The token, and the recipe's model (without a recipe: MedGemma)."""
    holder = token_holder(environment)
    yield _token(holder)
    if name := asked_model(recipe):
        yield _reachable(name, outcome, holder is not None, "warning" if recipe is None else "problem")
    elif recipe is not None and recipe.imagegen is None:
        yield _local(recipe.model.name)


def _model_of(recipe: Recipe) -> str:
    return recipe.model.name if recipe.imagegen is None else recipe.imagegen.generator.model


def token_holder(environment: Mapping[str, str]) -> str | None:
    """The variable or file that has a token, as huggingface_hub looks for it; None: none has."""
    for variable in VARIABLES:
        if environment.get(variable, "").strip():
            return variable
    file = Path(environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token")
    try:
        return str(file) if file.read_bytes().strip() else None
    except OSError:
        return None


def _token(holder: str | None) -> Finding:
    if holder is not None:
        return Finding("Hub token", "good", f"one is in {holder}")
    how = {
        "Kaggle": "add it as a secret, and put it into os.environ['HF_TOKEN'] in a cell before",
        "Colab": "add it as a secret named HF_TOKEN, and put it into os.environ['HF_TOKEN'] in a cell before",
    }.get(notebook() or "", "run hf auth login once, or set HF_TOKEN")
    return Finding("Hub token", "warning", "none; gated models such as MedGemma need one", f"For a gated model: {how}.")


def _local(name: str) -> Finding:
    folder = tiny.FOLDER if name == "tiny" else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        return Finding(
            "model", "problem", f"{name}: no config.json in {folder}", "Name a model's folder, or a Hub name."
        )
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        text = f"{name}: no weights in {folder}"
        return Finding("model", "problem", text, "Name a folder with the whole model, or a Hub name.")
    return Finding("model", "good", "tiny, shipped with the package" if name == "tiny" else f"{name}, a folder")


def _reachable(name: str, outcome: Outcome, token: bool, otherwise: State) -> Finding:
    """``otherwise``: the state where it cannot be had."""
    if outcome.end != "loaded":
        remedy = "Install it again: pip install --force-reinstall -c constraints.txt huggingface_hub."
        return Finding("model", otherwise, f"{name}: the Hub cannot be asked ({outcome.end}: {outcome.cause})", remedy)
    facts = outcome.facts
    if facts["cached"]:
        return Finding("model", "good", f"{name}, with all its weights in the Hub cache")
    if facts["offline"]:
        text = f"{name}: not whole in the Hub cache, and HF_HUB_OFFLINE forbids asking for it"
        return Finding("model", otherwise, text, f"Unset HF_HUB_OFFLINE and run hf download {name} once.")
    if "error" not in facts:
        return Finding("model", "good", f"{name}: the Hub answers and lets its files be had; not downloaded yet")
    return _refused(name, facts["kinds"], str(facts["error"]), token, otherwise)


def _refused(name: str, kinds: list[str], error: str, token: bool, otherwise: State) -> Finding:
    """By the kinds of huggingface_hub's error."""
    page = f"https://huggingface.co/{name}"
    log_in = "" if token else "run hf auth login with a token of that account, and "
    if "GatedRepoError" in kinds:
        who = "this token's account" if token else "this machine, which has no token,"
        text = f"{name}: gated, and the Hub does not let {who} have it"
        return Finding("model", otherwise, text, f"Accept its terms at {page}, {log_in}try again.")
    if "RepositoryNotFoundError" in kinds:
        return Finding(
            "model", otherwise, f"{name}: there is no such model, or it is private", "Check model.name, or log in."
        )
    if "EntryNotFoundError" in kinds:
        text = f"{name}: it has no config.json, so it is no model for transformers"
        return Finding("model", otherwise, text, "Check model.name; GGUF files cannot be trained.")
    first = " ".join(error.split())[:200] or kinds[0]
    remedy = "Check network and proxy; on Kaggle, switch the internet on. Or download it elsewhere and name its folder."
    return Finding("model", otherwise, f"{name}: the Hub cannot be reached ({first})", remedy)
