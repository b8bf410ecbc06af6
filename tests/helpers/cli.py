"""Call the command line in this process."""

from collections.abc import Sequence

import pytest

from toolkit.cli import main


def call(arguments: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code
