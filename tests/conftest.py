"""Fixtures of all tests."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
# At the end: without an editable installation the installed package is tested, not the checkout.
sys.path.append(str(ROOT))

if TYPE_CHECKING:
    from toolkit.models import Backend

BY_UNSLOTH = os.environ.get("TOOLKIT_TEST_BACKEND") == "unsloth"
"""Whether the protocol's tests run on Unsloth: in a process of their own, since it rewrites transformers and trl."""

if BY_UNSLOTH:
    from toolkit.models.unsloth.preload import start

    start(Path(tempfile.mkdtemp(prefix="toolkit-tests-")))

# A pause of a busy machine is longer than Hypothesis's deadline of 200 ms for one example.
settings.register_profile("toolkit", deadline=None)
settings.register_profile("gate", settings.get_profile("toolkit"), derandomize=True)
settings.load_profile("toolkit")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_report_header() -> str:
    """Print which copy of the package is tested."""
    import toolkit

    return f"toolkit: {Path(toolkit.__file__).parent}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and questions; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("TOOLKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder} (set TOOLKIT_SHARED_DATA)")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of a test are its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TOOLKIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def backend() -> "Backend":
    """The backend whose protocol is tested."""
    if BY_UNSLOTH:
        from toolkit.models.unsloth.backend import UnslothBackend

        return UnslothBackend()
    from toolkit.models.hf import HfBackend

    return HfBackend()
