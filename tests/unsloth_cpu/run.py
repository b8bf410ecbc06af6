"""Run the toolkit, or a module such as pytest, on the simulated GPU.

    python tests/unsloth_cpu/run.py run RECIPE --set model.backend=unsloth ...
    python tests/unsloth_cpu/run.py -m pytest tests/test_protocol.py

Environment: UNSLOTH_CPU_GPU (T4 or L4), UNSLOTH_CPU_GIB, UNSLOTH_CPU_COUNTS (a file), UNSLOTH_CPU_OOM (see ``oom``).
"""

import atexit
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [*(path for path in sys.path if path != str(HERE)), str(HERE.parents[1])]

from tests.unsloth_cpu.gpu import chosen_gpu
from tests.unsloth_cpu.oom import inject
from tests.unsloth_cpu.substitutes import install, write_counts

install(chosen_gpu())  # here, so that processes which this one spawns (the plan's) have the same GPU


def main() -> None:
    """Run the program that the arguments name."""
    atexit.register(write_counts)
    inject()
    if sys.argv[1:2] == ["-m"]:
        del sys.argv[0:2]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        from toolkit.cli import main as toolkit

        toolkit()


if __name__ == "__main__":
    main()
