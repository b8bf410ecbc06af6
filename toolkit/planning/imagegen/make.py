"""Make the plan of a recipe with [imagegen]."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from toolkit.errors import ModelError, Problem
from toolkit.imagegen.licence import KEY, licence_of
from toolkit.planning.duration import Range
from toolkit.planning.findings import PlanFinding, from_error, warning
from toolkit.planning.gpu import COMMON, GIB, Gpu, figures_of, usable_bytes
from toolkit.planning.imagegen.duration import Hours, ImagegenLoads, StageWork, plan_work
from toolkit.planning.imagegen.layout import Layout
from toolkit.planning.imagegen.models import (
    FLOAT,
    Base,
    Scorer,
    check_encoder,
    check_prompts,
    find_pipeline,
    resident_bytes,
    scorers_of,
    scoring_bytes,
    stored_bytes,
)
from toolkit.planning.imagegen.plan import GeneratorFacts, ImagegenPlan, ImagegenStageMemory
from toolkit.planning.imagegen.ratings import RatingsFacts, inspect_ratings
from toolkit.planning.imagegen.resources import ImagegenMemory, ImagegenSetting, check_imagegen_disk, plan_imagegen_disk
from toolkit.planning.memory import Moment
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import TINY_ENCODERS, most_clipped
from toolkit.runfolder import untested_versions

SIZES = (8, 12, 16, 24)
"""Nominal GB of GPUs that a plan names."""
LARGEST = 256
"""Images at most that a search for the largest batch tries."""
SMALLER = "Choose smaller encoders, a smaller imagegen.size or a larger GPU."
FID_IMAGES = 4
"""Images that FID needs for each feature."""


def make_imagegen_plan(recipe: Recipe, gpu: Gpu | None) -> ImagegenPlan:
    """Return the plan of a recipe with [imagegen].

    Args:
        recipe: loaded, so without problems of its own.
        gpu: the GPU to plan for. None: the plan has no GPU.
    """
    section = recipe.imagegen
    if section is None:
        raise ValueError("the recipe must have the section [imagegen]")
    ratings, findings = inspect_ratings(recipe, section)
    base, scorers = find_pipeline(section), scorers_of(section)
    prompts, untried = check_prompts(section, base, () if ratings is None else ratings.prompts)
    work = plan_work(section, ratings)
    memory = None if base.layout is None else imagegen_memory(section, base.layout, scorers)
    stages = None if memory is None else _stage_moments(section, memory)
    disk = plan_imagegen_disk(recipe, section, base, scorers, ratings)
    ram = _ram(section, base, ratings) | {"scoring models": stored_bytes(scorers, _frozen(section))}
    findings += [
        *base.findings,
        *_check_licence(section, base),
        *prompts,
        *_check_scorers(section, scorers, ratings),
        *_check_memory(stages, memory, gpu),
        *_check_ram(ram),
        *check_imagegen_disk(recipe, disk),
        *_check_figures(section),
        *_check_guards(section),
    ]
    return ImagegenPlan(
        run=recipe.run.name,
        stages=section.stages,
        generator=_generator(section, base, gpu),
        work=work,
        findings=tuple(findings),
        unknown={**base.untried, **untried, **_unknown(section, base, scorers, ratings)},
        ratings=ratings,
        gpu=gpu,
        memory=stages,
        largest={} if memory is None or gpu is None else _largest(section, memory, gpu.memory),
        ram=ram,
        time=_time(section, memory, scorers, work, ratings, gpu),
        disk=disk,
        versions=untested_versions(),
    )


def imagegen_memory(section: Imagegen, layout: Layout, scorers: Mapping[str, Scorer]) -> ImagegenMemory:
    """Return the formulas for a recipe's pipeline and settings."""
    keys, update = section.generator, section.update
    setting = ImagegenSetting(
        side=section.size,
        value=4 if keys.precision == "float32" else 2,
        rank=keys.lora.r,
        guided=keys.guidance_scale > 1,
        checkpointing=keys.gradient_checkpointing,
        micro_batch=update.micro_batch,
        batch=keys.batch_size,
        scorers=resident_bytes(scorers, _frozen(section)),
        scoring=scoring_bytes(scorers, section.size),
        prompts=update.images_per_round,
        factor=layout.factor,
    )
    return ImagegenMemory(layout, setting)


def _frozen(section: Imagegen) -> tuple[str, ...]:
    """Return the scorers whose vision tower is frozen. The extractor's always is, unless its parameters are random."""
    tunings = {name: getattr(section, name).tuning for name in ("selector", "policy", "judge")}
    return ("extractor", *(name for name, tuning in tunings.items() if tuning != "full"))


def _stage_moments(section: Imagegen, memory: ImagegenMemory) -> dict[str, ImagegenStageMemory]:
    keys, setting = section.update, memory.setting
    small = replace(setting, micro_batch=min(setting.micro_batch, keys.sft_batch_size))
    evaluation = [memory.rollout(), memory.decode(setting.batch)]
    evaluation += [memory.score()] if setting.scoring else []
    sft = [memory.encode(setting.batch), ImagegenMemory(memory.layout, small).sft(), *evaluation]
    ddpo = [memory.rollout(setting.micro_batch, trains=True), memory.ddpo(), *evaluation]
    moments = {"scorers": [memory.score()], "base": evaluation, "control": sft, "sft": sft, "ddpo": ddpo}
    return {
        name: ImagegenStageMemory(tuple(own), {size: _fits(own, usable_bytes(size)) for size in SIZES})
        for name, own in moments.items()
        if name in section.stages
    }


def _fits(moments: list[Moment], usable: int) -> bool:
    return all(moment.total <= usable for moment in moments)


def _largest(section: Imagegen, memory: ImagegenMemory, usable: int) -> dict[str, int]:
    """Return recipe key -> the largest value that fits. 0: not even one image fits."""

    def generating(images: int) -> list[Moment]:
        return [memory.rollout(images), memory.encode(images)]

    def updating(images: int) -> list[Moment]:
        own = ImagegenMemory(memory.layout, replace(memory.setting, micro_batch=images))
        return [own.ddpo() if method == "ddpo" else own.sft() for method in section.update.methods]

    finds: dict[str, Callable[[int], list[Moment]]] = {
        "generator.batch_size": generating,
        "update.micro_batch": updating,
    }
    return {key: _most(find, usable) for key, find in finds.items()}


def _most(find: Callable[[int], list[Moment]], usable: int) -> int:
    """Return the largest number of images, up to ``LARGEST``, whose moments fit. They grow with the number."""
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(find(middle), usable):
            low = middle
        else:
            high = middle - 1
    return low


def _generator(section: Imagegen, base: Base, gpu: Gpu | None) -> GeneratorFacts:
    keys, layout = section.generator, base.layout
    precision = keys.precision
    if precision == "auto":
        half = base.kind == "pipeline" if gpu is None else True
        precision = ("bfloat16" if gpu is None or gpu.bf16 else "float16") if half else "float32"
    trained = None if layout is None else layout.unet.lora_parameters(keys.lora.r)
    return GeneratorFacts(
        keys.model, base.state, None if layout is None else layout.parameters, trained, precision, section.size
    )


def _ram(section: Imagegen, base: Base, ratings: RatingsFacts | None) -> dict[str, int]:
    """Return bytes of RAM by part: rated images in 8 bits, the others in float32, with at most 3 channels."""
    image, keys = 3 * FLOAT * section.size**2, section.update
    channels, side = (base.layout.unet.latent, section.size // base.layout.factor) if base.layout else (1, section.size)
    rounds = keys.images_per_round if "ddpo" in keys.methods else 0
    return {
        "rated images": 0 if ratings is None else ratings.images * image // FLOAT * 5 // 4,
        "generated images": max(section.judge.images, rounds) * image,
        "trajectories": rounds * (section.generator.steps + 2) * channels * side**2 * FLOAT,
    }


def _check_scorers(
    section: Imagegen, scorers: Mapping[str, Scorer], ratings: RatingsFacts | None
) -> Iterator[PlanFinding]:
    """Yield problems that building or fitting the scoring models would raise."""
    for one in {one.key: one for one in scorers.values()}.values():
        yield from check_encoder(one)
    if ratings is None:
        return
    if ratings.images <= section.judge.features:
        rule = f"the feature extractor needs more rated images than its {section.judge.features} features"
        place, remedy = "[imagegen.judge] features", "Lower it, or add rated images."
        yield PlanFinding(Problem("imagegen.extractor_images_too_few", rule, place, ratings.images, remedy))
    if section.judge.encoder in TINY_ENCODERS and ratings.modalities == 1:
        rule = "an encoder with random parameters needs ratings of at least two modalities"
        place, remedy = "[imagegen.judge] encoder", "Name a pretrained encoder."
        yield PlanFinding(Problem("imagegen.extractor_labels_too_few", rule, place, 1, remedy))


def _check_memory(
    stages: Mapping[str, ImagegenStageMemory] | None, memory: ImagegenMemory | None, gpu: Gpu | None
) -> Iterator[PlanFinding]:
    """Yield stages whose estimate is above the GPU memory. The problem is certain if the parameters alone are above."""
    if stages is None or memory is None or gpu is None:
        return
    offered = f"the {gpu.memory / GIB:.1f} GiB of {gpu.name}"
    fixed = memory.layout.parameters * memory.setting.value
    if fixed > gpu.memory:
        rule, value = f"the generator's parameters in GiB must fit {offered}", round(fixed / GIB, 1)
        remedy = "Choose a smaller model or a larger GPU."
        yield PlanFinding(Problem("imagegen.generator_larger_than_gpu", rule, "GPU memory", value, remedy))
        return
    above: dict[str, tuple[Moment, list[str]]] = {}
    for name, one in stages.items():
        for moment in one.moments:
            if moment.total > gpu.memory:
                above.setdefault(moment.name, (moment, []))[1].append(name)
    for moment, names in above.values():
        rule = f"the estimated peak in GiB ({moment.name}) must fit {offered}"
        place, value = f"GPU memory of {', '.join(names)}", round(moment.total / GIB, 1)
        remedy = _remedy(moment.name, memory, gpu.memory)
        yield PlanFinding(Problem("plan.gpu_memory_too_small", rule, place, value, remedy), certain=False)


def _remedy(moment: str, memory: ImagegenMemory, usable: int) -> str:
    """Return the change that makes a moment fit: for an update a smaller micro-batch, then gradient checkpointing."""
    if moment == "rollout" or moment == "encoding":
        most = _most(lambda images: [memory.rollout(images), memory.encode(images)], usable)
        return f"Set generator.batch_size to {most}." if most else SMALLER
    if not moment.endswith("update"):
        return SMALLER
    for checkpointing in (memory.setting.checkpointing, True):
        setting = replace(memory.setting, checkpointing=checkpointing)

        def update(images: int, setting: ImagegenSetting = setting) -> list[Moment]:
            own = ImagegenMemory(memory.layout, replace(setting, micro_batch=images))
            return [own.ddpo() if moment.startswith("ddpo") else own.sft()]

        if most := _most(update, usable):
            switched = checkpointing != memory.setting.checkpointing
            beside = " and generator.gradient_checkpointing to true" if switched else ""
            return (
                f"Set update.micro_batch to {min(most, memory.setting.micro_batch)}{beside}, or use smaller encoders."
            )
    return SMALLER


def _check_licence(section: Imagegen, base: Base) -> Iterator[PlanFinding]:
    """Yield an unknown licence of a Stable Diffusion base, because the run would end before training."""
    if base.kind != "pipeline":
        return
    try:
        licence_of(section.generator.model, section.generator.licence)
    except ModelError as error:
        yield from_error(error, KEY)


def _check_ram(ram: Mapping[str, int]) -> Iterator[PlanFinding]:
    """Yield a warning if the estimate is above this machine's RAM."""
    needed = sum(ram.values())
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    if needed > there:
        rule = f"images and models need about {needed / GIB:.1f} GiB of RAM"
        remedy = "Lower imagegen.size, rate fewer images, or use a machine with more RAM."
        yield warning(Problem("imagegen.ram_too_small", rule, "RAM", round(there / GIB, 1), remedy))


def _check_guards(section: Imagegen) -> Iterator[PlanFinding]:
    """Yield limits of clipped advantages that the recipe sets and that can never take effect."""
    keys, group = section.guards, section.update.images_per_round
    chosen = sorted({"advantage_clip", "max_clipped"} & keys.model_fields_set)
    most = most_clipped(keys.advantage_clip, group)
    if "ddpo" in section.update.methods and chosen and most <= keys.max_clipped:
        rule = f"the guard cannot fire: at most {most:.2g} of the advantages can exceed {keys.advantage_clip:g}"
        remedy = "Lower advantage_clip or max_clipped, or raise update.images_per_prompt."
        place, value = f"[imagegen.guards] {', '.join(chosen)}", keys.max_clipped
        yield warning(Problem("imagegen.guard_cannot_fire", rule, place, value, remedy))


def _check_figures(section: Imagegen) -> Iterator[PlanFinding]:
    needed = FID_IMAGES * section.judge.features
    if section.judge.images < needed:
        rule = f"FID is left out, because it needs {needed} images for {section.judge.features} features"
        place, remedy = "[imagegen.judge] images", "Raise it, or lower features."
        yield warning(Problem("imagegen.fid_left_out", rule, place, section.judge.images, remedy))


def _unknown(
    section: Imagegen, base: Base, scorers: Mapping[str, Scorer], ratings: RatingsFacts | None
) -> dict[str, str]:
    found: dict[str, str] = {}
    if ratings is None:
        found["ratings"] = "they cannot be read: splits, prompts, time"
    elif ratings.synthetic:
        found["rating levels"] = "not tried: ratings are generated when the run begins"
    else:
        found["images"] = "not tried: images exist, and the stage ratings decodes them"
    if base.kind == "dit":
        found["time"] = "not estimated for a generator in pixel space, which runs on a CPU"
        found["GPU memory"] = "not estimated for a generator in pixel space: it needs less than 1 GiB"
    elif base.layout is None:
        found["memory and time"] = f"the configuration of {section.generator.model} is not in this machine"
    for one in scorers.values():
        if not one.known:
            found[one.key] = f"the configuration of {one.name} is not in this machine: its memory and time are left out"
        elif not one.local and one.name not in TINY_ENCODERS:
            found[one.key] = f"not tried: {one.name} is not downloaded"
    trained = [name for name in ("selector", "policy", "judge") if getattr(section, name).tuning == "full"]
    if trained and base.kind == "pipeline":
        found["training of encoders"] = f"memory and time are left out: {', '.join(trained)}"
    return found


def _time(
    section: Imagegen,
    memory: ImagegenMemory | None,
    scorers: Mapping[str, Scorer],
    work: Mapping[str, StageWork],
    ratings: RatingsFacts | None,
    gpu: Gpu | None,
) -> dict[str, dict[str, Range]] | None:
    """Return GPU -> stage -> duration for the plan's GPU, all GPUs of a described size, or common ones."""
    if memory is None:
        return None
    gpus = [figures for name in COMMON if (figures := figures_of(name))] if gpu is None else gpu.figures
    loads = ImagegenLoads(memory.layout, memory.setting)
    return {one.name: Hours(section, loads, scorers, one).stages(work, ratings) for one in gpus} or None
