"""Compare errors and warnings by code, place and value."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from toolkit.errors import CODE, ImageError, Problem, ToolkitError


class Raised:
    """The error that ``raises`` caught, and its first problem. Both are set when the block has ended."""

    error: ToolkitError
    problem: Problem


@contextmanager
def raises(kind: type[ToolkitError], *codes: str) -> Iterator[Raised]:
    """Expect an error of ``kind`` whose problems have exactly these codes, in this order.

    Example:
        with raises(DataError, "data.answer_not_text") as caught:
            read_rows(path)
        assert caught.problem.value == 1.5
    """
    caught = Raised()
    with pytest.raises(kind) as info:
        yield caught
    caught.error = info.value
    assert [problem.code for problem in caught.error.problems] == list(codes), str(caught.error)
    caught.problem = caught.error.problems[0]
    assert all(CODE.fullmatch(problem.code) for problem in caught.error.problems)


def image_of(caught: Raised) -> Path | None:
    """Return the path of the image whose error was caught. The message does not have it."""
    assert isinstance(caught.error, ImageError)
    return caught.error.path


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[Problem]:
    """Return the problems of all warnings that were logged with a code, in order."""
    return [record.problem for record in caplog.records if hasattr(record, "problem")]
