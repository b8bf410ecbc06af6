"""A fake CUDA device: two stub libraries, and patched functions of torch."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
COUNT, DRIVER = "libsimulated_count.so", "libcuda.so.1"
VARIABLE = "FAKE_CUDA_STUBS"


def build_stubs(folder: Path) -> Mapping[str, str]:
    """Compile the two stub libraries into a folder.

    Returns:
        The environment of a process that is to have the simulated device.

    Raises:
        subprocess.CalledProcessError: gcc failed.
        FileNotFoundError: there is no gcc.
    """
    for source, library in (("stub_device_count.c", COUNT), ("stub_driver.c", DRIVER)):
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", str(folder / library), str(FOLDER / source)],
            check=True,
            capture_output=True,
        )
    paths = [str(FOLDER.parents[1])]
    return {
        **os.environ,
        VARIABLE: str(folder),
        "LD_PRELOAD": str(folder / COUNT),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")])),
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def pretend_devices(count: int) -> None:
    """Set how many CUDA devices torch's C++ side counts.

    Raises:
        RuntimeError: this process was not started with ``build_stubs``' environment.
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        raise RuntimeError(f"{sys.argv[0]}: must be started with the environment of fake_cuda.device.build_stubs")
    ctypes.CDLL(str(Path(folder) / COUNT)).pretend_devices(count)


def patch_torch(*, bf16: bool) -> None:
    """Patch torch's Python functions for one CUDA device, and use GPU kernels for attention."""
    import torch
    import torch.cuda.amp.common
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from tests.fake_cuda.kernels import scaled_dot_product_attention

    torch.cuda.is_available = lambda: False  # lazy initialisation would look for a real driver
    torch.cuda.is_bf16_supported = lambda *_, **__: bf16
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention

    from transformers import masking_utils

    vars(masking_utils)["is_tracing"] = lambda *_, **__: False  # masks are made as in a plain run
    make = torch.tensor

    def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> torch.Tensor:
        """Return ``torch.tensor`` of Python numbers on the fake device, which has no memory for their values."""
        from tests.fake_cuda.log import known_tensor

        if device is None or torch.device(device).type != "cuda":
            return make(data, dtype=dtype, device=device, requires_grad=requires_grad)
        if isinstance(data, list | tuple):
            data = [int(one) if isinstance(one, torch.Tensor) else one for one in data]
        with unset_fake_temporarily(), torch._C._DisableTorchDispatch():
            value = make(data, dtype=dtype)
        return known_tensor(value)

    torch.tensor = tensor  # type: ignore[assignment]
