"""The commands and their options."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli.doctor import doctor
from toolkit.cli.dry_run import rehearse_run
from toolkit.cli.imagegen_commands import Method, imagegen_app
from toolkit.cli.plan import plan, plan_run
from toolkit.cli.prepare import prepare_app
from toolkit.cli.report import report_app

app = typer.Typer(
    help="Fine-tune medical vision-language models (SFT, GRPO), and train medical image generators from expert ratings "
    "(SFT, DDPO): data, training, evaluation and export from one TOML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at a recipe's data, or make practice data.", no_args_is_help=True)
reward_app = typer.Typer(help="Try rewards out.", no_args_is_help=True)
app.add_typer(data_app, name="data")
data_app.add_typer(prepare_app, name="prepare")
app.add_typer(reward_app, name="reward")
app.add_typer(report_app, name="report")
app.add_typer(imagegen_app, name="imagegen")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]
ModelChoice = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="adapter, merged, gguf, a quantisation such as q8_0, or a path to weights."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one value, such as grpo.learning_rate=1e-6."),
]


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"toolkit {__version__}")
        raise typer.Exit


@app.callback()
def toolkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and leave.")
    ] = False,
) -> None:
    """The options that every command has."""


@app.command()
def run(
    recipe: RecipePath,
    settings: Settings = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew; an old run of this name is kept as NAME.old-1.")
    ] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Run every stage on a few rows with tiny models, in NAME.rehearsal."),
    ] = False,
) -> None:
    """Run all stages of a recipe, or resume where it stopped.

    Vision-language model: data, evaluation, SFT, GRPO, export. Image generator, if the recipe has the
    section imagegen: ratings, scorers, base, control, SFT, DDPO.
    """
    if rehearse:
        rehearse_run(recipe, settings or ())
        return
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling
    from toolkit.pipeline import run_recipe
    from toolkit.pipeline.stages import STAGES
    from toolkit.recipe import load_recipe
    from toolkit.runfolder import is_main_process
    from toolkit.tasks import TASKS

    loaded = load_recipe(recipe, settings or (), tasks=TASKS, files=True)
    if loaded.imagegen is not None:
        from toolkit.cli import imagegen

        imagegen.run_recipe(loaded, fresh=fresh)
        return
    with telling() as (progress, notify):
        planned = plan_run(loaded, fresh=fresh) if is_main_process() else None
        results = run_recipe(loaded, STAGES, fresh=fresh, plan=planned, progress=progress, notify=notify)
    if is_main_process():
        show.results(results)


app.command()(plan)


@app.command()
def evaluate(
    run_folder: RunPath,
    settings: Settings = None,
    name: Annotated[
        str | None, typer.Option(help="What the table calls it; default: the model's name, or again-1, again-2, …")
    ] = None,
    model: ModelChoice = None,
) -> None:
    """Ask a run's model, or what was exported of it, the held-out questions; --set may change its section evaluate."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling
    from toolkit.pipeline.rerun import evaluate_again
    from toolkit.pipeline.stages import STAGES

    with telling() as told:
        results = evaluate_again(run_folder, STAGES, settings or (), name=name, model=model, told=told)
    show.results(results)


@app.command()
def export(
    run_folder: RunPath,
    to: Annotated[list[str] | None, typer.Option(help="adapter, merged or gguf; repeat it, or a,b.")] = None,
    quant: Annotated[
        list[str] | None, typer.Option(help="Of a GGUF: f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m; repeat it, or a,b.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write here, and not into the run folder.", file_okay=False)] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not ask what was written whether it answers as before.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Push the one form to the Hub once it is proven.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody to see; else private.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Rename what stands in --out to NAME.old-1; push beside files that are there."),
    ] = False,
    method: Annotated[
        Method | None,
        typer.Option(help="Image generation, with --push: whose LoRA; default: the one with the best judge score."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Write a run's weights for other programs; --set may change its section export.

    The run of an image generator has its LoRA in stages/METHOD/weights already, and --push uploads it.
    """
    from toolkit.cli import tables as show
    from toolkit.cli.exports import export_settings, is_for_generators
    from toolkit.cli.progress import telling
    from toolkit.pipeline.rerun import Delivery, export_again
    from toolkit.pipeline.stages import STAGES

    if public and push is None:
        raise typer.BadParameter("has a meaning only with --push", param_hint="--public")
    others = {"--to": to, "--quant": quant, "--out": out, "--no-verify": no_verify, "--set": settings}
    if is_for_generators(run_folder, push, method, {name for name, value in others.items() if value}):
        from toolkit.cli.imagegen_commands import push_lora

        push_lora(run_folder, push or "", method, public=public, force=force)
        return
    chosen = [*export_settings(to or (), quant or (), verify=not no_verify), *(settings or ())]
    delivery = Delivery(out, push, public, force)
    with telling() as told:
        record = export_again(run_folder, STAGES, chosen, delivery, told=told)
    show.exported(record, run_folder)


@app.command()
def predict(
    run_folder: RunPath,
    question: Annotated[str | None, typer.Option(help="The question, without its options.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture; repeat it for several.", exists=True, dir_okay=False)
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help='An option of a multiple-choice question, such as "A. Normal"; repeat it.')
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(help="NAME=TEXT for a column of the recipe's prompt.context; repeat it.")
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tasks of steps (Task_id, Image_id, Instruction): predict all.", exists=True),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --steps: the JSONL file.", dir_okay=False)] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="With --steps: where screenshots lie; default: beside the file.", exists=True, file_okay=False
        ),
    ] = None,
    goal: Annotated[str | None, typer.Option(help="With --interactive: what the steps are to reach.")] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Read one screenshot's path after another, and tell the next step.")
    ] = False,
    model: ModelChoice = None,
) -> None:
    """Ask a run's model, or exported weights in it, one question, every step of a file, or step after step."""
    from toolkit.cli.predict import Which, ask_one, ask_steps, check_form, converse

    named = dict(_name_and_text(text) for text in context or ())
    given = {
        "--question": question,
        "--image": image,
        "--option": option,
        "--context": context,
        "--steps": steps,
        "--out": out,
        "--image-root": image_root,
        "--goal": goal,
        "--interactive": interactive,
    }
    form = check_form({name for name, value in given.items() if value})
    which = Which(run_folder, model)
    if form == "--steps" and steps is not None:
        ask_steps(which, steps, out, image_root)
    elif form == "--interactive" and goal is not None:
        converse(which, goal, named)
    elif question is not None and image is not None:
        ask_one(which, question, image, option or (), named)


def _name_and_text(given: str) -> tuple[str, str]:
    name, equals, text = given.partition("=")
    if not equals:
        raise typer.BadParameter(f"{given!r} is not NAME=TEXT", param_hint="--context")
    return name.strip(), text.strip()


@data_app.command()
def phantom(
    kind: Annotated[str, typer.Argument(help="The kind of rows, such as chest. An unknown kind lists all of them.")],
    out: Annotated[Path, typer.Option(help="The folder to write into.", file_okay=False)],
    train: Annotated[int, typer.Option(min=1, help="Training rows.")] = 1200,
    validation: Annotated[int, typer.Option(min=0, help="Validation rows.")] = 0,
    test: Annotated[int, typer.Option(min=1, help="Test rows.")] = 400,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Width of a picture in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same pictures.")] = 3407,
) -> None:
    """Make practice data: pictures whose answers can be seen in them, in the layout of a real data set."""
    from toolkit.cli import tables as show
    from toolkit.recipe import Phantom
    from toolkit.tasks import TASKS

    rows = {task.synthetic.kind: (task, task.synthetic) for task in TASKS.values() if task.synthetic is not None}
    if kind not in rows:
        kinds = "".join(f"\n  {name}: {one.description}" for name, (_, one) in rows.items())
        raise typer.BadParameter(f"{kind!r} must be one of:{kinds}", param_hint="KIND")
    task, synthetic = rows[kind]
    wanted = Phantom(kind=kind, train=train, validation=validation, test=test, size=size)
    out.mkdir(parents=True, exist_ok=True)
    show.phantom(task.name, synthetic.write(out, wanted, seed))


@data_app.command()
def inspect(
    recipe: RecipePath,
    settings: Settings = None,
    rows: Annotated[int, typer.Option("--show", min=0, help="Print so many training rows as the model sees them.")] = 0,
) -> None:
    """Read a recipe's rows and pictures and tell what is there: splits, unusable rows, leaks, pictures."""
    from toolkit.cli import tables as show
    from toolkit.cli.progress import telling
    from toolkit.pipeline.prepare_data import inspect_data
    from toolkit.recipe import for_language_models, load_recipe
    from toolkit.tasks import TASKS

    loaded = for_language_models(load_recipe(recipe, settings or (), tasks=TASKS, files=True), "toolkit data inspect")
    with telling() as (progress, _):
        data, scan, rendered = inspect_data(loaded, progress, rows)
    show.data(data, scan)
    show.rendered(rendered)


@reward_app.command("test")
def reward_test(
    recipe: RecipePath,
    completions: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help="Each line: completion, and id (a row of the data) or sample (the row itself).",
            exists=True,
            dir_okay=False,
        ),
    ],
    settings: Settings = None,
) -> None:
    """Score given completions with a recipe's rewards and say why each scored what it did."""
    from toolkit.cli import tables as show
    from toolkit.recipe import for_language_models, load_recipe
    from toolkit.tasks import TASKS
    from toolkit.training.reward_test import score_file

    loaded = for_language_models(load_recipe(recipe, settings or (), tasks=TASKS), "toolkit reward test")
    show.scored(score_file(loaded, completions))


app.command()(doctor)
