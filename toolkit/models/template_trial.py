"""Script that renders a chat template under limits on CPU time, memory and output.

jinja2's sandbox keeps a template from running code, but not from looping for ever or filling the memory:
``{{ 'a' * 9999999999 }}`` does so already when it is compiled. The script is therefore run by its path in its own
process and imports nothing of this package.

Input: a JSON object with ``template``, ``variables`` and ``calls``, which have ``messages`` and
``add_generation_prompt``. Output: a line ``READY`` before the first call, and then the reason of a failure, if any.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

READY = "ready"
SECONDS = 5
"""Most CPU seconds of all calls. A chat template needs milliseconds."""
MEGABYTES = 256
"""Most additional memory of all calls, on Linux."""
CHARACTERS = 1_000_000
"""Most characters of a rendered prompt. The messages of the calls have less than 100."""
FAILURES = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""Errors that an expression of a template can raise."""


def main() -> None:
    """Read the job from standard input and write the outcome to standard output."""
    from transformers.utils.chat_template_utils import render_jinja_template

    job = json.load(sys.stdin)
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    _limit_resources()
    for call in job["calls"]:
        try:
            rendered: Any = render_jinja_template(
                [call["messages"]],
                chat_template=job["template"],
                add_generation_prompt=call["add_generation_prompt"],
                **job["variables"],
            )
            rendered[0][0].encode()  # a tokenizer raises TypeError for a lone surrogate
        except FAILURES as error:
            sys.stdout.write(describe(error))
            return
        if len(rendered[0][0]) > CHARACTERS:
            sys.stdout.write(f"more than {CHARACTERS:,} characters for a short prompt")
            return


def describe(error: BaseException) -> str:
    """Return the first line of an error's message, with the line of the template if it is known."""
    if isinstance(error, MemoryError):
        return f"more than {MEGABYTES} MB of memory for a short prompt"
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    line = getattr(error, "lineno", None)
    return f"line {line}: {text}" if line else text


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows has the time limit of the calling process only.
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = Path("/proc/self/statm")
    if pages.is_file():
        used = int(pages.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)


if __name__ == "__main__":
    main()
