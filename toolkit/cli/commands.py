"""Commands of `toolkit` and their options."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli.app import App
from toolkit.cli.benchmark import run_benchmark
from toolkit.cli.cache import cache_app
from toolkit.cli.data import data_app
from toolkit.cli.demo import demo
from toolkit.cli.doctor import doctor
from toolkit.cli.dry_run import run_dry_run
from toolkit.cli.imagegen_commands import Method, imagegen_app
from toolkit.cli.new import new
from toolkit.cli.options import AsJson, ModelChoice, RecipePath, RunPath, Settings, open_recipe
from toolkit.cli.output import print_json
from toolkit.cli.plan import plan, short_lines
from toolkit.cli.predict import predict
from toolkit.cli.recipes import constraints, recipes_app
from toolkit.cli.report import report
from toolkit.cli.runs import list_runs
from toolkit.cli.seeds import run_with_seeds

app = App(
    help="Fine-tune medical vision-language models (SFT, DPO, GRPO), and train medical image generators from expert "
    "ratings (SFT, DDPO): data, training, evaluation and export from one TOML recipe.",
    epilog="First run, on a CPU: toolkit run quickstart. Your own data: toolkit new.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
reward_app = App(help="Test rewards.")
app.add_typer(data_app, name="data")
app.add_typer(reward_app, name="reward")
app.add_typer(imagegen_app, name="imagegen")
app.add_typer(cache_app, name="cache")
app.add_typer(recipes_app, name="recipes")


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


@app.command(
    examples=[
        "toolkit run quickstart",
        "toolkit run my.toml --dry-run",
        "toolkit run my.toml --set run.name=short --set sft.max_steps=100",
    ]
)
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
    as_json: AsJson = False,
) -> None:
    """Run all stages of a recipe, or resume where the run stopped.

    Vision-language model: data, evaluation, SFT, DPO, GRPO, export and report. Image generator (a recipe with the
    section imagegen): ratings, scorers, base, control, SFT and DDPO.
    """
    if dry_run:
        if seeds is not None:
            raise typer.BadParameter("must be left out with --dry-run", param_hint="--seeds")
        run_dry_run(recipe, settings or (), as_json=as_json)
        return
    if seeds is not None:
        run_with_seeds(recipe, settings or (), seeds, fresh=fresh, as_json=as_json)
        return
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline import run_recipe
    from toolkit.pipeline.plan import plan_run
    from toolkit.pipeline.stages import STAGES
    from toolkit.runfolder import is_main_process

    loaded = open_recipe(recipe, settings, files=True)
    if loaded.imagegen is not None:
        from toolkit.cli import imagegen

        imagegen.run_recipe(loaded, fresh=fresh, as_json=as_json)
        return
    with show_progress() as (progress, notify):
        planned = plan_run(loaded, fresh=fresh, describe=short_lines) if is_main_process() else None
        results = run_recipe(loaded, STAGES, fresh=fresh, plan=planned, progress=progress, notify=notify)
    if is_main_process():
        show.results_or_json(results, as_json=as_json)


app.command(examples=["toolkit plan my.toml --gpu T4", "toolkit plan my.toml --deep"])(plan)


@app.command(
    examples=[
        "toolkit evaluate runs/quickstart --set evaluate.limit=100",
        "toolkit evaluate runs/quickstart --model merged",
        "toolkit evaluate --benchmark vqa_rad --data data/vqa_rad --model google/medgemma-4b-it",
    ]
)
def evaluate(
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Override a key of the section evaluate, such as evaluate.limit=100. With --benchmark: any key.",
        ),
    ] = None,
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
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's model, or one of its exports, on the held-out split.

    With --benchmark NAME --data FOLDER --model MODEL, evaluate tiny, a Hub name, a folder of weights or a run on a
    public benchmark, in a run folder of its own.
    """
    if benchmark is not None or data is not None or run_folder is None:
        run_benchmark(benchmark, data, model, settings or (), (run_folder, name), as_json=as_json)
        return
    from toolkit.cli import tables as show
    from toolkit.cli.progress import show_progress
    from toolkit.pipeline.existing_run import evaluate_again
    from toolkit.pipeline.stages import STAGES

    with show_progress() as callbacks:
        results = evaluate_again(run_folder, STAGES, settings or (), name=name, model=model, callbacks=callbacks)
    show.results_or_json(results, as_json=as_json)


@app.command(
    examples=[
        "toolkit export runs/quickstart --to merged",
        "toolkit export runs/quickstart --to gguf --quant f16,q8_0",
    ]
)
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
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Override a key of the section export, such as export.verify=100."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a run's model as an adapter, merged weights or GGUF, and verify it.

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

        push_lora(run_folder, push or "", method, public=public, force=force, as_json=as_json)
        return
    chosen = export_settings(to or (), quant or (), settings or (), verify=not no_verify)
    delivery = Delivery(out, push, public, force)
    with show_progress() as callbacks:
        record = export_again(run_folder, STAGES, chosen, delivery, callbacks=callbacks)
    if as_json:
        print_json(record, folder=run_folder.absolute())
    else:
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


app.command(
    examples=[
        'toolkit predict runs/mine --image chest.png --question "How large is the heart?"',
        "toolkit predict runs/mine --data questions.csv --out predictions.csv",
    ]
)(predict)
app.command(examples=["toolkit demo runs/quickstart --port 8080"])(demo)
app.command(examples=["toolkit new", "toolkit new --data rows.csv --gpu 16 --out my.toml --yes"])(new)
app.command("list")(list_runs)


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
    as_json: AsJson = False,
) -> None:
    """Score completions with a recipe's rewards, and explain each score."""
    from toolkit.cli import tables as show
    from toolkit.recipe import for_language_models
    from toolkit.training.completions_file import score_file

    scored = score_file(for_language_models(open_recipe(recipe, settings), "toolkit reward test"), completions)
    if as_json:
        print_json({"completions": [show.scored_json(one) for one in scored]})
    else:
        show.scored(scored)


app.command(examples=["toolkit doctor", "toolkit doctor my.toml --json"])(doctor)
app.command(examples=['pip install medvlm-toolkit -c "$(toolkit constraints)"'])(constraints)
app.command(
    examples=[
        "toolkit report runs/quickstart",
        "toolkit report runs/first runs/second --out compared.html",
        "toolkit report runs --format markdown",
    ]
)(report)
