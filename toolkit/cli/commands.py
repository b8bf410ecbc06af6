"""Commands of `toolkit` and their options."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from toolkit import __version__
from toolkit.cli.benchmark import run_benchmark
from toolkit.cli.cache import cache_app
from toolkit.cli.demo import demo
from toolkit.cli.doctor import doctor
from toolkit.cli.dry_run import run_dry_run
from toolkit.cli.imagegen_commands import Method, imagegen_app
from toolkit.cli.options import ModelChoice, RecipePath, RunPath, Settings
from toolkit.cli.plan import plan, short_lines
from toolkit.cli.predict import predict
from toolkit.cli.prepare import prepare_app
from toolkit.cli.report import report_app
from toolkit.cli.seeds import run_with_seeds


class _Group(TyperGroup):
    """A group of commands that suggests the new name of a renamed command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that ``args`` name, and its arguments."""
        if args and args[0] not in self.commands:
            _reject_renamed(ctx, f"toolkit {self.name} {args[0]}")
        return super().resolve_command(ctx, args)


class _Command(TyperCommand):
    """A command that suggests the new name of a renamed option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Return the arguments that are left after the options."""
        for word in args:
            if word.startswith("--"):
                _reject_renamed(ctx, word.partition("=")[0])
        return super().parse_args(ctx, args)


def _reject_renamed(ctx: Any, former: str) -> None:
    from toolkit.recipe.renamed import use_new_name  # imports pydantic, which `toolkit --help` must not wait for

    if remedy := use_new_name(former):
        ctx.fail(f"{former} was renamed. {remedy}")


app = typer.Typer(
    help="Fine-tune medical vision-language models (SFT, GRPO), and train medical image generators from expert ratings "
    "(SFT, DDPO): data, training, evaluation and export from one TOML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(cls=_Group, help="Inspect a recipe's data, or generate synthetic data.", no_args_is_help=True)
reward_app = typer.Typer(help="Test rewards.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.add_typer(prepare_app, name="prepare")
app.add_typer(reward_app, name="reward")
app.add_typer(report_app, name="report")
app.add_typer(imagegen_app, name="imagegen")
app.add_typer(cache_app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"toolkit {__version__}")
        raise typer.Exit


@app.callback()
def toolkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Define the options of `toolkit` itself."""


@app.command(cls=_Command)
def run(
    recipe: RecipePath,
    settings: Settings = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again. An old run is renamed to NAME.old-1.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run every stage on a few rows with tiny models, in NAME.dry-run."),
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Repeat the training with the seeds 1 to N, or with those of a list such as 7,11. Prints their mean.",
        ),
    ] = None,
) -> None:
    """Run all stages of a recipe, or resume where the run stopped.

    Vision-language model: data, evaluation, SFT, GRPO and export. Image generator (a recipe with the section
    imagegen): ratings, scorers, base, control, SFT and DDPO.
    """
    if dry_run:
        if seeds is not None:
            raise typer.BadParameter("must be left out with --dry-run", param_hint="--seeds")
        run_dry_run(recipe, settings or ())
        return
    if seeds is not None:
        run_with_seeds(recipe, settings or (), seeds, fresh=fresh)
        return
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline import run_recipe
    from toolkit.pipeline.plan import plan_run
    from toolkit.pipeline.stages import STAGES
    from toolkit.recipe import load_recipe
    from toolkit.runfolder import is_main_process
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, settings or (), tasks=TASKS, files=True)
    if loaded.imagegen is not None:
        from toolkit.cli import imagegen

        imagegen.run_recipe(loaded, fresh=fresh)
        return
    with show_progress() as (progress, notify):
        planned = plan_run(loaded, fresh=fresh, describe=short_lines) if is_main_process() else None
        results = run_recipe(loaded, STAGES, fresh=fresh, plan=planned, progress=progress, notify=notify)
    if is_main_process():
        show.results(results)


app.command()(plan)


@app.command()
def evaluate(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")
    ] = None,
    settings: Settings = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name in the table. Default: the model's name, otherwise again-1, again-2, … "
            "With --benchmark: name of the run."
        ),
    ] = None,
    model: ModelChoice = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Evaluate on a public benchmark, with --data and --model. An unknown name prints all benchmarks.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --benchmark: the folder of its published files.", file_okay=False)
    ] = None,
) -> None:
    """Evaluate a run's model, or one of its exports, on the held-out split. --set changes the section evaluate.

    With --benchmark NAME --data FOLDER --model MODEL, evaluate tiny, a Hub name, a folder of weights or a run on a
    public benchmark, in a run folder of its own.
    """
    if benchmark is not None or data is not None or run_folder is None:
        run_benchmark(benchmark, data, model, settings or (), (run_folder, name))
        return
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import evaluate_again
    from toolkit.pipeline.stages import STAGES

    with show_progress() as callbacks:
        results = evaluate_again(run_folder, STAGES, settings or (), name=name, model=model, callbacks=callbacks)
    show.results(results)


@app.command()
def export(
    run_folder: RunPath,
    to: Annotated[
        list[str] | None, typer.Option(help="Format: adapter, merged or gguf. Repeat it, or use a,b.")
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option(help="GGUF quantization: f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m. Repeat it, or use a,b."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of the run folder.", file_okay=False)] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip verification of the exported weights.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Push the format to the Hub after verification.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: create a public repository.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Rename an existing folder in --out to NAME.old-1, and push to a repository with files."
        ),
    ] = False,
    method: Annotated[
        Method | None,
        typer.Option(help="Image generation, with --push: the method. Default: the best judge score."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Export a run's model as an adapter, merged weights or GGUF, and verify it. --set changes the section export.

    The run of an image generator already has its LoRA in stages/METHOD/weights, and --push uploads it.
    """
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import Delivery, export_again, export_settings
    from toolkit.pipeline.stages import STAGES

    if public and push is None:
        raise typer.BadParameter("must be used with --push", param_hint="--public")
    others = {"--to": to, "--quant": quant, "--out": out, "--no-verify": no_verify, "--set": settings}
    if _is_image_generator(run_folder, push, method, {name for name, value in others.items() if value}):
        from toolkit.cli.imagegen_commands import push_lora

        push_lora(run_folder, push or "", method, public=public, force=force)
        return
    chosen = export_settings(to or (), quant or (), settings or (), verify=not no_verify)
    delivery = Delivery(out, push, public, force)
    with show_progress() as callbacks:
        record = export_again(run_folder, STAGES, chosen, delivery, callbacks=callbacks)
    show.exported(record, run_folder)


def _is_image_generator(run_folder: Path, push: str | None, method: str | None, others: set[str]) -> bool:
    """Return whether the run trained an image generator. Its LoRA can only be pushed.

    Raises:
        typer.BadParameter: an option does not apply to this kind of run.
        RunError: the folder is not a run.
    """
    from toolkit.runfolder import find_run
    from toolkit.tasks import TASKS

    if find_run(run_folder).recipe(TASKS).imagegen is None:
        if method is not None:
            raise typer.BadParameter("must be left out for a vision-language model", param_hint="--method")
        return False
    if push is None:
        place = "The LoRA of an image generator is in stages/METHOD/weights of its run already."
        raise typer.BadParameter(f"must be given for an image generator. {place}", param_hint="--push")
    if others:
        raise typer.BadParameter("must be left out for an image generator", param_hint=", ".join(sorted(others)))
    return True


app.command()(predict)
app.command()(demo)


@data_app.command()
def synthetic(
    kind: Annotated[
        str, typer.Argument(help="Kind of synthetic data, such as chest. An unknown kind prints all kinds.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.", file_okay=False)],
    train: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training rows.")] = 1200,
    validation: Annotated[int, typer.Option(min=0, max=1_000_000, help="Validation rows.")] = 0,
    test: Annotated[int, typer.Option(min=1, max=1_000_000, help="Test rows.")] = 400,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Image width in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The same seed generates the same images.")] = 3407,
    force: Annotated[
        bool, typer.Option("--force", help="Rename files in --out that this command did not write to NAME.old-1.")
    ] = False,
) -> None:
    """Generate synthetic data in the layout of a real dataset. Every answer is visible in its image."""
    from toolkit.cli import tables as show
    from toolkit.recipe import SyntheticData
    from toolkit.runfolder import output_files
    from toolkit.tasks import TASKS

    kinds = {task.synthetic.kind: (task, task.synthetic) for task in TASKS.values() if task.synthetic is not None}
    if kind not in kinds:
        known = "".join(f"\n  {name}: {one.description}" for name, (_, one) in kinds.items())
        raise typer.BadParameter(f"must be one of the following (got {kind!r}):{known}", param_hint="KIND")
    task, rows = kinds[kind]
    settings = SyntheticData(kind=kind, train=train, validation=validation, test=test, size=size)
    with output_files(out, force=force) as folder:
        files = {split: out / file.relative_to(folder) for split, file in rows.write(folder, settings, seed).items()}
    show.synthetic(task.name, files)


@data_app.command()
def inspect(
    recipe: RecipePath,
    settings: Settings = None,
    rows: Annotated[
        int, typer.Option("--show", min=0, help="Print this many training rows as the model sees them.")
    ] = 0,
) -> None:
    """Report the splits, unusable rows, leaks and images of a recipe.

    The exit code is 1 if an image is unusable and images.unreadable is "stop".
    """
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.prepare_data import inspect_data
    from toolkit.recipe import for_language_models, load_recipe
    from toolkit.tasks import TASKS

    loaded = for_language_models(load_recipe(recipe, settings or (), tasks=TASKS, files=True), "toolkit data inspect")
    with show_progress() as (progress, _):
        data, scan, rendered = inspect_data(loaded, progress, rows)
    show.data(data, scan)
    show.rendered(rendered)
    if scan.bad and loaded.images.unreadable == "stop":
        raise typer.Exit(1)


@reward_app.command("test")
def reward_test(
    recipe: RecipePath,
    completions: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help="Each line has a completion, and an id (of a row) or a sample (the row itself).",
            exists=True,
            dir_okay=False,
        ),
    ],
    settings: Settings = None,
) -> None:
    """Score completions with a recipe's rewards, and explain each score."""
    from toolkit.cli import tables as show
    from toolkit.recipe import for_language_models, load_recipe
    from toolkit.tasks import TASKS
    from toolkit.training.completions_file import score_file

    loaded = for_language_models(load_recipe(recipe, settings or (), tasks=TASKS), "toolkit reward test")
    show.scored(score_file(loaded, completions))


app.command()(doctor)
