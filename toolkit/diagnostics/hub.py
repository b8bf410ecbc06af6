"""The Hugging Face Hub: whether a token exists (its value is never read into a finding), and whether the model is
available."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit import tiny
from toolkit.diagnostics.finding import DoctorFinding, State
from toolkit.diagnostics.machine import hub_home, notebook
from toolkit.diagnostics.probes import HubFacts, Outcome
from toolkit.distribution import pip_install
from toolkit.recipe import Recipe
from toolkit.recipe.model_kind import is_folder_name

DEFAULT_MODEL = "google/medgemma-4b-it"
"""Model that is checked if no recipe is given."""
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def model_to_check(recipe: Recipe | None) -> str:
    """Return the Hub name of the model to check. Empty: the recipe's model is not on the Hub."""
    name = DEFAULT_MODEL if recipe is None else _model_of(recipe)
    return "" if name == "tiny" or is_folder_name(name) else name


def check_hub(recipe: Recipe | None, outcome: Outcome, environment: Mapping[str, str]) -> Iterator[DoctorFinding]:
    """Yield findings for the token and the recipe's model (without a recipe: MedGemma)."""
    location = token_location(environment)
    yield _token(location)
    if name := model_to_check(recipe):
        yield _reachable(name, outcome, location is not None, "warning" if recipe is None else "problem")
    elif recipe is not None and recipe.imagegen is None:
        yield _local(recipe.model.name)


def _model_of(recipe: Recipe) -> str:
    return recipe.model.name if recipe.imagegen is None else recipe.imagegen.generator.model


def token_location(environment: Mapping[str, str]) -> str | None:
    """Return the variable or file that contains a token, as huggingface_hub looks for it. None: there is no token."""
    for variable in VARIABLES:
        if environment.get(variable, "").strip():
            return variable
    file = Path(environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token")
    try:
        return str(file) if file.read_bytes().strip() else None
    except OSError:
        return None


def _token(location: str | None) -> DoctorFinding:
    if location is not None:
        return DoctorFinding("doctor.token", "Hub token", "good", f"found in {location}")
    how = {
        "Kaggle": "add it as a secret, and put it into os.environ['HF_TOKEN'] in a cell before",
        "Colab": "add it as a secret named HF_TOKEN, and put it into os.environ['HF_TOKEN'] in a cell before",
    }.get(notebook() or "", "run hf auth login once, or set HF_TOKEN")
    text = "none, but gated models such as MedGemma need one"
    return DoctorFinding("doctor.token_none", "Hub token", "warning", text, f"For a gated model, {how}.")


def _local(name: str) -> DoctorFinding:
    folder = tiny.FOLDER if name == "tiny" else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        text = f"{name}: {folder} has no config.json"
        remedy = "Name a model folder, or a Hub name."
        return DoctorFinding("doctor.model_config_missing", "model", "problem", text, remedy)
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        text = f"{name}: {folder} has no weights"
        remedy = "Name a complete model folder, or a Hub name."
        return DoctorFinding("doctor.model_weights_missing", "model", "problem", text, remedy)
    text = "tiny, shipped with the package" if name == "tiny" else f"{name}, a folder"
    return DoctorFinding("doctor.model_local", "model", "good", text)


def _reachable(name: str, outcome: Outcome, token: bool, otherwise: State) -> DoctorFinding:
    """Check the access to a Hub model. ``otherwise``: state of the finding if the model is not available."""
    if outcome.end != "loaded":
        remedy = f"Install it again: {pip_install('--force-reinstall huggingface_hub')}."
        text = f"{name}: huggingface_hub cannot be used ({outcome.end}: {outcome.cause})"
        return DoctorFinding("doctor.hub_not_queried", "model", otherwise, text, remedy)
    facts = outcome.report.hub
    if facts.cached:
        return DoctorFinding("doctor.model_cached", "model", "good", f"{name}, with all its weights in the Hub cache")
    if facts.offline:
        text = f"{name}: incomplete or missing in the Hub cache, and HF_HUB_OFFLINE forbids a download"
        remedy = f"Unset HF_HUB_OFFLINE and run hf download {name} once."
        return DoctorFinding("doctor.model_not_cached", "model", otherwise, text, remedy)
    if not facts.kinds:
        text = f"{name}: the Hub grants access to its files, which are not downloaded yet"
        return DoctorFinding("doctor.model_reachable", "model", "good", text)
    return _access_denied(name, facts, token, otherwise)


def _access_denied(name: str, facts: HubFacts, token: bool, otherwise: State) -> DoctorFinding:
    """Return the finding for the class of huggingface_hub's error."""
    page = f"https://huggingface.co/{name}"
    log_in = "" if token else "run hf auth login with a token of that account, and "
    if "GatedRepoError" in facts.kinds:
        who = "this token's account" if token else "this machine, which has no token"
        text = f"{name}: gated, and the Hub denies access to {who}"
        return DoctorFinding(
            "doctor.model_gated", "model", otherwise, text, f"Accept its terms at {page}, {log_in}try again."
        )
    if "RepositoryNotFoundError" in facts.kinds:
        text = f"{name}: the model does not exist or is private"
        return DoctorFinding("doctor.model_not_found", "model", otherwise, text, "Check model.name, or log in.")
    if "EntryNotFoundError" in facts.kinds:
        text = f"{name}: it has no config.json, so transformers cannot load it"
        remedy = "Check model.name. GGUF files cannot be trained."
        return DoctorFinding("doctor.model_not_transformers", "model", otherwise, text, remedy)
    first = " ".join(facts.error.split())[:200] or facts.kinds[0]
    remedy = "Check network and proxy. On Kaggle, switch the internet on. Or download the model elsewhere and name its "
    remedy += "folder."
    return DoctorFinding(
        "doctor.hub_unreachable", "model", otherwise, f"{name}: the Hub is unreachable ({first})", remedy
    )
