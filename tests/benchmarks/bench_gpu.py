"""Time and GPU memory of a shipped recipe's stages on a model of the real size, beside what the plan says.

    python tests/benchmarks/bench_gpu.py recipes/medgemma_sft_grpo.toml --trainer unsloth --gigabytes 16

Nothing is downloaded. A configuration of toolkit/planning/shapes gets random parameters, which take the time and memory
of trained ones. Their completions never end, so each has max_completion_tokens. The recipe's data set is replaced by
synthetic data of the same layout, and a reward for length gives the groups a variance. Everything else is the recipe's.

``--trainer`` is unsloth, hf, or trl. The last is a plain script with 4-bit transformers, peft, TRL's trainers and TRL's
own collator. Each trainer needs a process of its own, because Unsloth rewrites TRL. ``--gigabytes`` limits what torch
may reserve to the memory of a GPU of that size. ``--layers`` keeps the first layers of the language model. The plan's
figures are then those of the smaller model too.

Each stage trains ``--steps`` optimizer steps. It stops earlier, but not before the second step, when ``--seconds`` of
this process have passed except for the time of later stages. The file records such a stage as "stopped". A stage that
fails does not stop the next. The JSON file is replaced after each step, so that a process that is ended from outside
leaves what it has measured. The process ends with 1 if a stage has failed.

``--compare`` compares GRPO by plain TRL with the toolkit's, without and with each saving of repeated work
(``gpu_savings.py``). ``--without`` switches savings off in one process. With ``--smoke`` both run on a CPU.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.gpu_savings import EQUAL_REWARDS, SAVINGS, compare, grpo_watched, work
from toolkit.errors import ToolkitError
from toolkit.runfolder import write_json

if TYPE_CHECKING:
    from toolkit.evaluation.stage_context import Context
    from toolkit.models.backend import TrainingJob
    from toolkit.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("unsloth", "hf", "trl")
STAGES = ("grpo", "sft", "evaluate")
RECIPE = ROOT / "recipes/medgemma_sft_grpo.toml"
QUESTIONS, ANSWER_TOKENS = 16, 32
"""Of the evaluation: two batches of short answers."""
GIB = 2**30
RESERVE = 15
"""Seconds that a stage leaves to each of those after it."""
BEGUN = time.perf_counter()
"""When this process began, as far as it can be known here."""
FAILURES = (
    ToolkitError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of a stage that are recorded with their traceback. The figures of the next stage do not depend on it."""


class Enough(Exception):
    """The stage has used its seconds."""


@dataclass
class Measurement:
    """The JSON file: facts about this process, and the figures of each stage."""

    file: Path | None
    facts: dict[str, Any]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, stage: str, **figures: Any) -> None:
        """Add figures of a stage and replace the file."""
        self.stages.setdefault(stage, {}).update(figures)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        if self.file is not None:
            write_json(self.file, {**self.facts, "stages": self.stages})


@dataclass
class Steps:
    """Records the end of each step of a stage, and raises ``Enough`` once ``until`` is over and two steps are done."""

    stage: str
    measurement: Measurement
    until: float
    begun: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)
    last: int = 0
    counts: list[Any] = field(default_factory=list)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take in that ``done`` of ``total`` steps are done (in an evaluation: of the questions)."""
        if not what.startswith(self.stage) or done <= self.last:
            return  # other work, or the summary after the last step
        from toolkit.runfolder.usage import counts

        synchronize()
        self.last = done
        self.counts.append(counts())
        self.ends.append(time.perf_counter())
        spans = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        self.measurement.note(
            self.stage,
            steps=len(self.ends),
            seconds_until_first_step=round(self.ends[0] - self.begun, 2),
            step_seconds=[round(span, 3) for span in spans],
            seconds_a_step=round(statistics.median(spans), 3) if spans else None,
            **({"work": work(self.counts)} if self.stage == "grpo" else {}),
            **peaks(),
        )
        if self.stage == "evaluate" and len(self.ends) == 1:
            forget_peaks()  # loading is over, whose peak belongs to no batch
        if len(self.ends) > 1 and done < total and self.ends[-1] > self.until:
            raise Enough


def measure(options: argparse.Namespace) -> Measurement:
    """Measure the stages one after another in this process."""
    from tests.helpers.recipes_on_shapes import SHAPE_OF, on_synthetic_data
    from tests.helpers.shapes import release
    from toolkit.recipe import load_recipe
    from toolkit.tasks import TASKS

    recipe = load_recipe(options.recipe, tasks=TASKS)
    shape = options.shape or SHAPE_OF[recipe.model.name]
    facts = {"trainer": options.trainer, "recipe": options.recipe.name, "shape": shape, "smoke": options.smoke}
    measurement = Measurement(options.out, facts | machine(options))
    measurement.write()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = options.model or folder / shape
        if not (model / "config.json").is_file():
            started = time.perf_counter()
            write_model_apart(model, options) if options.stages else write_model(shape, model, options)
            measurement.facts["seconds_to_write_the_model"] = round(time.perf_counter() - started, 1)
        measurement.facts["layers"] = layers_of(model)
        measurement.write()
        for stage in options.stages:
            chosen = on_synthetic_data(recipe, model, folder / stage, small=False, backend=backend_of(options.trainer))
            run_stage(stage, shrink(one_stage(chosen, stage, folder / stage, options), options), measurement, options)
            release()
    return measurement


def write_model(shape: str, model: Path, options: argparse.Namespace) -> None:
    """Write the model, under its own name once it is complete."""
    from tests.helpers import shapes

    partial = model.with_name(f"{model.name}.partial")
    shapes.write_model(shape, partial, options.data, small=options.smoke, layers=options.layers)
    partial.rename(model)


def write_model_apart(model: Path, options: argparse.Namespace) -> None:
    """The same in a process of its own, in which nothing has rewritten transformers."""
    words = [sys.executable, __file__, str(options.recipe), "--stages"]
    words += ["--model", str(model), "--data", str(options.data)]
    words += ["--shape", options.shape] if options.shape else []
    words += ["--layers", str(options.layers)] if options.layers else []
    subprocess.run([*words, *(["--smoke"] if options.smoke else [])], check=True)


def one_stage(recipe: "Recipe", stage: str, folder: Path, options: argparse.Namespace) -> "Recipe":
    """The recipe with this stage alone, and a reward under which sampled completions differ."""
    from tests.helpers.training import length_reward
    from toolkit.recipe import Evaluate

    folder.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = {name: None for name in ("sft", "grpo") if name != stage}
    if options.no_dropout:
        changes["lora"] = recipe.lora.model_copy(update={"dropout": 0.0})
    if stage == "evaluate":
        changes["evaluate"] = Evaluate(limit=QUESTIONS, batch_size=QUESTIONS // 2, max_completion_tokens=ANSWER_TOKENS)
        rows = recipe.dataset.synthetic.model_copy(update={"test": QUESTIONS}) if recipe.dataset.synthetic else None
        changes["data"] = recipe.dataset.model_copy(update={"synthetic": rows})
    else:
        section = getattr(recipe, stage)
        warmup = min(section.warmup_steps, options.steps)
        changes[stage] = section.model_copy(update={"max_steps": options.steps, "warmup_steps": warmup})
        rewards = length_reward(folder)
        if options.equal_rewards:
            (folder / "length.py").write_text(EQUAL_REWARDS, encoding="utf-8")
        changes["rewards"] = recipe.rewards.model_copy(update=rewards)
        if stage == "grpo" and "packing" in options.without:
            changes["grpo"] = changes["grpo"].model_copy(update={"packing": False})
    return recipe.model_copy(update=changes)


def shrink(recipe: "Recipe", options: argparse.Namespace) -> "Recipe":
    """For ``--smoke``: small images, short completions, few rows. In 32 bits if there is no GPU."""
    if not options.smoke:
        return recipe
    from tests.helpers.recipes_on_shapes import SMALL
    from toolkit.recipe import SyntheticData

    changes: dict[str, Any] = {"images": recipe.images.model_copy(update={"max_side": 112})}
    if recipe.dataset.synthetic is not None:
        rows = SyntheticData(kind=recipe.dataset.synthetic.kind, **{**SMALL, "test": recipe.dataset.synthetic.test})
        changes["data"] = recipe.dataset.model_copy(update={"synthetic": rows})
    cheap: dict[str, Any] = {} if has_cuda() else {"optimizer": "adamw_torch"}
    if recipe.sft is not None:
        changes["sft"] = recipe.sft.model_copy(update={**cheap, "accumulation": 2})
    if recipe.grpo is not None:
        fewer = {"prompts_per_step": 1, "generations": 4, "max_completion_tokens": 4}
        changes["grpo"] = recipe.grpo.model_copy(update={**cheap, **fewer})
    if recipe.evaluate is not None:
        changes["evaluate"] = recipe.evaluate.model_copy(update={"max_completion_tokens": 4})
    if not has_cuda():
        changes["model"] = recipe.model.model_copy(update={"precision": "32bit"})
    return recipe.model_copy(update=changes)


def run_stage(stage: str, recipe: "Recipe", measurement: Measurement, options: argparse.Namespace) -> None:
    """Plan a stage and run it; whatever happens is in the file afterwards."""
    from tests.helpers.training import context_of

    state, started = "failed", time.perf_counter()
    measurement.note(stage, state="running", allocated_before_gib=allocated())
    try:
        measurement.note(stage, planned=planned(recipe, stage, options.gigabytes))
    except FAILURES as error:
        measurement.note(stage, planned={"error": describe(error)})
    try:
        with context_of(recipe) as context:
            forget_peaks()
            later = len(options.stages) - options.stages.index(stage) - 1
            steps = Steps(stage, measurement, BEGUN + options.seconds - RESERVE * later)
            with grpo_watched(partial(measurement.note, "grpo"), options):
                result = RUN[stage, options.trainer == "trl"](replace(context, progress=steps))
        if options.trainer != "trl" and stage != "evaluate":
            record = {"backend": result.backend, "gpu_memory": asdict(result.training.gpu_memory)}
            measurement.note(stage, record=record)
        state = "done"
    except Enough:
        state = "stopped"
    except FAILURES as error:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        measurement.note(stage, error=describe(error))
    measurement.note(stage, state=state, seconds=round(time.perf_counter() - started, 1))


def planned(recipe: "Recipe", stage: str, gigabytes: float) -> dict[str, Any]:
    """Return the plan of a stage on this GPU, if it had ``gigabytes`` GB.

    It has the moment of the peak, GiB allocated and reserved by torch, and both ends of the seconds of a step (of a
    batch of questions in an evaluation). The plan is made in another process, as in ``toolkit run``, because it imports
    the model's module of transformers, which Unsloth then no longer rewrites.
    """
    from toolkit.pipeline.plan import plan_language_model as make
    from toolkit.planning import described_gpu, find_gpu
    from toolkit.planning.stages import Stage

    size, here = described_gpu(gigabytes), find_gpu()
    gpu = size if here is None else replace(here, memory=min(here.memory, size.memory))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        plan = apart.submit(make, recipe, gpu).result()
    if not plan.memory:
        return {"unknown": dict(plan.unknown)}
    name = cast(Stage, stage)
    peak = plan.memory[name].estimate.peak
    found: dict[str, Any] = {
        "moment": peak.name,
        "allocated_gib": round(peak.allocated / GIB, 3),
        "reserved_gib": round(peak.reserved / GIB, 3),
    }
    if plan.time and len(gpu.figures) == 1 and (time_ := plan.time[gpu.figures[0].name].get(name)):
        batches = QUESTIONS // recipe.evaluation.batch_size if stage == "evaluate" else 1
        found["seconds"] = [seconds / batches for seconds in time_.step.seconds]
    return found


def train_by_toolkit(stage: str) -> Callable[["Context"], Any]:
    """The toolkit's own stage."""

    def run(context: "Context") -> Any:
        from toolkit.evaluation.evaluate import evaluate
        from toolkit.training.grpo import train_grpo
        from toolkit.training.sft import train_sft

        if stage == "evaluate":
            return evaluate(context, "bench", None, ())
        return {"sft": train_sft, "grpo": train_grpo}[stage](context)

    return run


def train_by_trl(stage: str) -> Callable[["Context"], Any]:
    """The same rows and settings in plain TRL."""

    def run(context: "Context") -> Any:
        from transformers import PrinterCallback

        from tests.benchmarks.plain_trl import ReportSteps, plain_grpo, plain_model, plain_policy, plain_rows, plain_sft
        from toolkit.training.grpo import grpo_settings
        from toolkit.training.sft import sft_settings

        recipe = context.recipe
        source = recipe.model.name
        model, reader = plain_model(source, recipe.lora, recipe.run.seed, **loading(recipe)), plain_policy(source)
        job = plain_job(context, stage)
        job = replace(job, rows=plain_rows(job.rows))
        if stage == "sft":
            trainer = plain_sft(model, reader.processor, job, sft_settings(job))
        else:
            trainer = plain_grpo(model, reader.processor, job, grpo_settings(reader, job), length)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ReportSteps(stage, context.progress))
        forget_peaks()
        return trainer.train()

    return run


RUN: Mapping[tuple[str, bool], Callable[["Context"], Any]] = {
    **{(stage, False): train_by_toolkit(stage) for stage in STAGES},
    **{(stage, True): train_by_trl(stage) for stage in ("grpo", "sft")},
}
"""(stage, whether by plain TRL) -> what runs it."""


def plain_job(context: "Context", stage: str) -> "TrainingJob":
    """The toolkit's rows, for a trainer that is not the toolkit's."""
    from toolkit.models.backend import RewardScorer, TrainingJob
    from toolkit.models.prompts import Prompts

    prompts, samples = Prompts.of(context.recipe, context.images), context.data.train
    rows = prompts.rows(samples, answer=stage == "sft")
    job = TrainingJob(context.recipe, rows, len(samples), context.run.stage_folder(stage))
    return job if stage == "sft" else replace(job, scorer=RewardScorer({"length": 1.0}, score))


def score(
    numbers: Sequence[int], completions: Sequence[Any]
) -> tuple[list[Mapping[str, float | None]], dict[str, float]]:
    """Never called: the plain trainer has ``length``. The settings take the weights from the scorer that this is in."""
    raise NotImplementedError


def length(completions: list[Any], **_: Any) -> list[float]:
    return [min(len(one[0]["content"]), 200) / 200 for one in completions]


def loading(recipe: "Recipe") -> dict[str, Any]:
    """What a script gives from_pretrained for four bits."""
    import torch
    from transformers import BitsAndBytesConfig

    if recipe.model.precision != "4bit":
        return {"dtype": torch.float32}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {
        "dtype": torch.bfloat16,
        "device_map": {"": torch.cuda.current_device()},
        "quantization_config": quantization,
    }


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Cap the GPU memory, and return facts about the GPU and the installed versions."""
    import torch

    from toolkit.runfolder import installed_versions

    found: dict[str, Any] = {"device": "cpu", "versions": installed_versions()}
    if has_cuda():
        found |= {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "memory_gib": round(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB, 2),
            "gigabytes": options.gigabytes,
            "cap_gib": round(cap(options.gigabytes) / GIB, 2),
        }
    return found


def cap(gigabytes: float) -> int:
    """Let torch reserve no more than a GPU of that size offers beside CUDA's own memory; return these bytes.

    Unsloth sizes its losses and its checkpointing by the free GPU memory, so that has to follow the cap. This comes
    after Unsloth is imported, which sets up torch's allocator before CUDA starts.
    """
    import torch

    from toolkit.planning import described_gpu
    from toolkit.planning.memory import CONTEXT

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    most = min(total, described_gpu(gigabytes).memory - CONTEXT)
    torch.cuda.set_per_process_memory_fraction(most / total)
    uncapped = torch.cuda.mem_get_info

    def capped(device: Any = None) -> tuple[int, int]:
        free, _ = uncapped(device)
        return max(min(free, most - torch.cuda.memory_reserved(device)), 0), most

    torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = capped
    return most


def layers_of(model: Path) -> int:
    from toolkit.runfolder import read_json

    return int(read_json(model / "config.json")["text_config"]["num_hidden_layers"])


def backend_of(trainer: str) -> str:
    return "unsloth" if trainer == "unsloth" else "hf"


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def peaks() -> dict[str, float | None]:
    """GiB at most that tensors took and that torch reserved, since ``forget_peaks`` or the stage's first step."""
    from toolkit.runfolder.usage import gpu_peaks

    names = {"allocated_gib": "peak_allocated_bytes", "reserved_gib": "peak_reserved_bytes"}
    found = gpu_peaks()
    return {name: None if (size := found[key]) is None else round(size / GIB, 3) for name, key in names.items()}


def allocated() -> float | None:
    """Return the GiB of GPU memory that tensors use now. Before a stage, this is what the previous stage still uses."""
    import torch

    return round(torch.cuda.memory_allocated() / GIB, 3) if has_cuda() else None


def forget_peaks() -> None:
    from toolkit.runfolder.usage import begin_peak

    begin_peak()


def synchronize() -> None:
    import torch

    if has_cuda():
        torch.cuda.synchronize()


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def show(measurement: Measurement) -> None:
    """Print one line for each stage."""
    for stage, figures in measurement.stages.items():
        seconds, plan = figures.get("seconds_a_step"), figures.get("planned", {})
        memory = f"{figures.get('reserved_gib')} GiB reserved (plan: {plan.get('reserved_gib')})"
        print(f"{stage}: {figures['state']}, {seconds} s a step, {memory} {figures.get('error', '')}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--trainer", choices=TRAINERS, default="hf")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=["grpo", "sft"], help="none: write the model")
    parser.add_argument("--shape", help="a name in toolkit/planning/shapes; default: that of the recipe's model")
    parser.add_argument("--layers", type=int, help="of the language model; default: all")
    parser.add_argument("--gigabytes", type=float, default=16, help="the GPU's nominal size; default: 16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600, help="of this process, imports included; default: 600")
    parser.add_argument("--model", type=Path, help="the model's folder, which is written if it is not there")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--data", type=Path, help="has processors.tar.gz, which Qwen models need")
    parser.add_argument("--smoke", action="store_true", help="two layers and small images, on any device: does it run?")
    parser.add_argument("--without", nargs="*", choices=SAVINGS, default=[], help="savings of GRPO that are off")
    parser.add_argument("--equal-rewards", action="store_true", help="a third of the rows has equal rewards")
    parser.add_argument("--no-dropout", action="store_true", help="lora.dropout = 0, so that gradients are comparable")
    parser.add_argument("--gradients", type=Path, help="a file for the gradients of GRPO's first step")
    parser.add_argument("--compare", action="store_true", help="all methods of GRPO in turn. --out is a folder then")
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison")
    options = parser.parse_args(arguments)
    options.data = options.data or Path(os.environ.get("TOOLKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if options.trainer == "trl" and ("evaluate" in options.stages or options.without or options.compare):
        parser.error("plain TRL has neither an evaluation nor savings, and is a part of --compare")
    return options


def main() -> int:
    options = parse()
    if options.compare:
        return compare(options, Path(__file__))
    with tempfile.TemporaryDirectory() as compiled:
        if options.trainer == "unsloth":
            from toolkit.models.unsloth.preload import start

            start(Path(compiled))
        if not (has_cuda() or options.smoke):
            print("a CUDA device is needed (or --smoke)", file=sys.stderr)
            return 1
        measurement = measure(options)
    show(measurement)
    return int(any(figures["state"] == "failed" for figures in measurement.stages.values()))


if __name__ == "__main__":
    sys.exit(main())
