"""``python -m tests.fake_cuda SPEC OUT``: the program that ``trace.trace`` starts."""

import dataclasses
import json
import sys
import warnings
from pathlib import Path

from tests.fake_cuda.trace import read_spec, run

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    traced = run(read_spec(Path(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(traced)), encoding="utf-8")
