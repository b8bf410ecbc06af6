"""What would make a stage fit: each setting that saves memory changed in turn, and the memory computed again."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from toolkit.planning.architecture import Architecture
from toolkit.planning.memory.estimate import estimate
from toolkit.planning.memory.setting import Setting

Knob = tuple[str, Setting]
"""What to write into the recipe, and the setting that it leads to."""


def first_fit(model: Architecture, setting: Setting, usable: int, max_side: int) -> tuple[str, ...] | None:
    """The first single change with which the stage needs at most ``usable`` bytes; else the changes, taken together in
    their order, with which it does; empty: it fits as it is; None: none of them is enough.

    The order is that of what a change costs: first what costs time alone, then precision and pictures, at last what the
    stage learns from.
    """

    def fits(one: Setting) -> bool:
        return estimate(model, one, usable).peak.total <= usable

    if fits(setting):
        return ()
    for text, changed in _knobs(model, setting, max_side):
        if fits(changed):
            return (text,)
    texts: tuple[str, ...] = ()
    for knob in _ORDER:
        for text, changed in knob(model, setting, max_side):
            if estimate(model, changed, usable).peak.total < estimate(model, setting, usable).peak.total:
                texts, setting = (*texts, text), changed
                break
        if fits(setting):
            return texts
    return None


def _knobs(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    for knob in _ORDER:
        yield from knob(model, setting, max_side)


def _micro_batch(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    key = "sft.batch_size" if setting.stage == "sft" else "grpo.micro_batch"
    rows = setting.rows if setting.trains else 1
    while rows > 1:
        rows = max(d for d in range(1, rows) if setting.rows % d == 0)
        same = f" (and {setting.rows // rows} times sft.accumulation)" if setting.stage == "sft" else ""
        yield f"{key} = {rows}{same}", replace(setting, rows=rows)


def _checkpointing(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.trains and not setting.checkpointing:
        yield f"{setting.stage}.gradient_checkpointing = true", replace(setting, checkpointing=True)


def _optimizer(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.trains and "8bit" not in setting.optimizer:
        name = "paged_adamw_8bit"
        yield f'{setting.stage}.optimizer = "{name}"', replace(setting, optimizer=name)


def _batch_of_answers(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.stage == "evaluate":
        count = setting.concurrent
        while count > 1:
            count //= 2
            yield f"evaluate.batch_size = {count}", replace(setting, concurrent=count)


def _precision(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.tuning == "lora" and setting.precision != "4bit":
        yield 'model.precision = "4bit"', replace(setting, precision="4bit")
    elif setting.tuning == "full":
        yield (
            'model.tuning = "lora", model.precision = "4bit"',
            replace(setting, tuning="lora", precision="4bit", reference="none"),
        )


def _pictures(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    """Below the longest side that a picture of the row has, since a higher limit would change nothing."""
    tower, row = model.vision, setting.row
    if tower is None or tower.side is not None or not row.sizes:
        return
    longest = min(max_side, max(map(max, row.sizes)))
    for share in (0.75, 0.5, 0.375):
        side = int(longest * share) // 28 * 28
        if side >= 224:
            smaller = row.limited(side, tower.patch * tower.merge, tower.merge)
            yield f"images.max_side = {side}", replace(setting, row=smaller)


def _answers(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    tokens = setting.answer_tokens // 2
    if setting.stage == "grpo" and tokens >= 64:
        yield f"grpo.max_completion_tokens = {tokens}", replace(setting, answer_tokens=tokens)


def _completions(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.stage == "grpo":
        for part in (2, 4):
            count, rest = divmod(setting.concurrent, part)
            if rest == 0 and count >= 2 and count % setting.rows == 0:  # micro_batch divides them
                yield f"grpo.prompts_per_step x grpo.generations = {count}", replace(setting, concurrent=count)


def _rank(model: Architecture, setting: Setting, max_side: int) -> Iterator[Knob]:
    if setting.trains and setting.tuning == "lora" and setting.r > 8:
        yield "lora.r = 8", replace(setting, r=8)


_ORDER: tuple[Callable[[Architecture, Setting, int], Iterator[Knob]], ...] = (
    _micro_batch,
    _checkpointing,
    _batch_of_answers,
    _optimizer,
    _precision,
    _pictures,
    _completions,
    _answers,
    _rank,
)
