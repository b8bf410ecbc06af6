"""The work of the stages of [imagegen], and how long it takes on a GPU: ranges from FLOPs, bytes and kernel launches.

FLOPs are sums over convolutions, linear layers and attention. Bytes and launches were counted with torch's dispatcher
on Stable Diffusion 1.5, and follow the bytes that a forward pass keeps. Rates are those of
``toolkit.planning.duration``. The slow end is slower than there, because published hours of DDPO (Black et al.
2023) are a third above the same sum for an A100, and small GPUs reach less of their peak.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.planning.duration import Range
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.imagegen.layout import Block, Layout, Resnet, Sampler, Transformer, Vae
from toolkit.planning.imagegen.models import Scorer
from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.planning.imagegen.resources import ImagegenSetting, saved_bytes
from toolkit.planning.passes import Cost
from toolkit.planning.speed import RANGE_FACTOR, Arithmetic, Speed, speeds
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import Update

FORWARD_MOVED, BACKWARD_MOVED = {2: 5.05, 4: 4.75}, {2: 7.0, 4: 6.9}
"""Bytes of a value -> bytes that a forward and a backward pass move, relative to what the forward pass keeps."""
RECOMPUTED = 0.73
"""Fraction of a forward pass that gradient checkpointing repeats: a block's last operations need no repetition."""
FORWARD_LAUNCHES, BACKWARD_LAUNCHES, RECOMPUTED_LAUNCHES = 50, 59, 42
"""Kernels of a block on average."""
VAE_MOVED = 13
"""Bytes that the VAE moves for each number of a residual block's input, relative to the bytes of a value."""
VAE_LAUNCHES = 150
FLASH_BACKWARD = 2.5
"""FLOPs of attention's backward pass relative to its forward pass, with the scores computed again."""

FAST, SLOW = 1.5, 0.51
"""Speeds of both ends of a range, relative to the middle of other recipes."""
ASSUMPTIONS = (
    f"assumed: {FAST} times and {SLOW} times the speed that is the middle of the range for other recipes",
    "the selector passes every image that sft can be trained on, and no guard stops a method",
    "not included: download, loading, reading of images, training of the scorers' heads, checkpoints",
)
"""Assumptions behind the ranges, which the plan prints."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """Counts of one stage.

    Attributes:
        steps: optimizer steps.
        images_per_step: images of an optimizer step. 0 for ``ddpo``, whose steps take images at one denoising step.
        rounds: rounds of ``ddpo``.
        evaluations: evaluations, each of ``judge.images`` generated images.
        generated: images that are generated, in rounds and evaluations.
        updated: image passes forward and backward, each at one denoising step.
        encoded: training images that become latents, at most.
    """

    steps: int = 0
    images_per_step: int = 0
    rounds: int = 0
    evaluations: int = 0
    generated: int = 0
    updated: int = 0
    encoded: int = 0


def plan_work(section: Imagegen, ratings: RatingsFacts | None) -> Mapping[str, StageWork]:
    """Return stage -> counts. Steps of ``scorers`` are 0 if the ratings cannot be read."""
    counts = {"ratings": StageWork(), "scorers": _scorers(section, ratings), "base": _evaluations(section, 1)}
    counts |= {"control": _sft(section, ratings), "sft": _sft(section, ratings), "ddpo": _ddpo(section)}
    return {name: counts[name] for name in section.stages}


@dataclass(frozen=True, slots=True)
class ImagegenLoads:
    """Loads of one pipeline and setting."""

    layout: Layout
    setting: ImagegenSetting

    def denoise(self, images: int, *, guided: bool | None = None) -> Cost:
        """Return a pass without gradients for ``images`` images, such as one step of their rollout."""
        guided = self.setting.guided if guided is None else guided
        return self._forward(images * (2 if guided else 1))

    def update(self, images: int, *, guided: bool | None = None) -> Cost:
        """Return a forward and a backward pass for ``images`` images at one denoising step each."""
        guided = self.setting.guided if guided is None else guided
        rows = images * (2 if guided else 1)
        forward = self._forward(rows)
        found = forward + self._backward(rows)
        if not self.setting.checkpointing:
            return found
        blocks = len(self.layout.unet.blocks)
        again = Cost(RECOMPUTED * forward.flops, RECOMPUTED * forward.moved, RECOMPUTED_LAUNCHES * blocks)
        return found + again

    def decode(self, images: int) -> Cost:
        """Return the VAE's decoding, image by image."""
        return self._vae(self.layout.vae.decoder) * images

    def encode(self, images: int) -> Cost:
        """Return the VAE's encoding."""
        return self._vae(self.layout.vae.encoder) * images

    def _forward(self, rows: int) -> Cost:
        products, attention = self._flops
        return Cost(
            rows * (products + attention),
            FORWARD_MOVED[self.setting.value] * rows * self._saved + self._parameters,
            FORWARD_LAUNCHES * len(self.layout.unet.blocks),
        )

    def _backward(self, rows: int) -> Cost:
        """Return the load of a backward pass. Frozen parameters get no gradient: a product costs as much as forward."""
        products, attention = self._flops
        return Cost(
            rows * (products + FLASH_BACKWARD * attention),
            BACKWARD_MOVED[self.setting.value] * rows * self._saved + self._parameters,
            BACKWARD_LAUNCHES * len(self.layout.unet.blocks),
        )

    @property
    def _saved(self) -> float:
        plain = replace(self.setting, checkpointing=False)
        return saved_bytes(self.layout.unet, plain)

    @property
    def _parameters(self) -> float:
        return float(self.setting.value * self.layout.unet.parameters)

    @property
    def _flops(self) -> tuple[float, float]:
        """FLOPs of a row: matrix products and convolutions, and attention among positions."""
        unet, tokens = self.layout.unet, self.layout.text.tokens
        products = attention = 0.0
        for block in unet.blocks:
            positions = _area(self.setting.latent, block.level)
            if isinstance(block, Transformer):
                width = block.width
                lora = 12 * width * self.setting.rank
                products += 2 * positions * (20 * width**2 + lora) + 4 * tokens * width * unet.text
                attention += 4 * positions * width * (positions + tokens)
            else:
                products += _convolutions(block, positions)
        return products, attention

    def _vae(self, blocks: tuple[Block, ...]) -> Cost:
        side, vae = self.setting.side, self.layout.vae
        flops = moved = 0.0
        for block in blocks:
            positions = _area(side, block.level)
            flops += _convolutions(block, positions)
            width = block.inputs if isinstance(block, Resnet) else _width(block)
            moved += VAE_MOVED * self.setting.value * width * positions
        return Cost(flops + _middle_attention(vae, side), moved, VAE_LAUNCHES)


@dataclass(frozen=True, slots=True)
class Hours:
    """Durations of one recipe with one pipeline on one GPU.

    Attributes:
        section: the recipe's section.
        loads: the costs of the pipeline's passes.
        scorers: the scoring models.
        gpu: figures of the GPU.
    """

    section: Imagegen
    loads: ImagegenLoads
    scorers: Mapping[str, Scorer]
    gpu: GpuFigures

    def image(self, batch: int | None = None) -> Range:
        """Return the duration of generating one image in a batch."""
        batch = self.section.generator.batch_size if batch is None else batch
        return self._range([*self._generate(batch)], []) * (1 / batch)

    def update(self, images: int, *, guided: bool) -> Range:
        """Return the duration of a forward and backward pass over some images, each at one denoising step.

        Args:
            images: the number of images.
            guided: whether the pass has classifier-free guidance, as in ``ddpo`` and unlike in ``sft``.
        """
        return self._range([self.loads.update(images, guided=guided)], [])

    def round(self) -> Range:
        """Return the duration of a round of ``ddpo`` without its evaluation."""
        keys = self.section.update
        chunks, steps = _chunks(keys), self.section.generator.steps
        passes = [one * chunks for one in self._generate(keys.micro_batch)]
        update = self.loads.update(keys.micro_batch)
        if keys.kl:
            update = update + self.loads.denoise(keys.micro_batch)
        # The KL divergence is measured on every chunk and every step, but not on every pair: with LoRA and without.
        passes += [update * (chunks * steps), self.loads.denoise(keys.micro_batch) * (2 * max(chunks, steps))]
        scoring = self._scoring(keys.images_per_round, "selector", "policy")
        return self._range(passes, scoring)

    def evaluation(self) -> Range:
        """Return the duration of one evaluation."""
        images = self.section.judge.images
        batch = self.section.generator.batch_size
        passes = [one * (images / batch) for one in self._generate(batch)]
        return self._range(passes, self._scoring(images, *self.scorers))

    def stages(self, work: Mapping[str, StageWork], ratings: RatingsFacts | None) -> dict[str, Range]:
        """Return stage -> duration, for stages that take a GPU's time."""
        found: dict[str, Range] = {}
        if ratings is not None:
            found["scorers"] = self._scorers_stage(ratings)
        for name, one in work.items():
            if one.evaluations:
                found[name] = self._arm(name, one)
        return found

    def _arm(self, name: str, work: StageWork) -> Range:
        total = self.evaluation() * work.evaluations
        if name == "ddpo":
            return _sum(total, self.round() * work.rounds)
        if not work.steps:
            return total
        micro = min(self.section.update.micro_batch, work.images_per_step)
        update = self.update(micro, guided=False) * (work.updated / micro)
        encoding = self._range([self.loads.encode(work.encoded)], self._scoring(work.encoded, "selector", "policy"))
        return _sum(total, update, encoding)

    def _scorers_stage(self, ratings: RatingsFacts) -> Range:
        """Return the passes for features of training and validation images, and of mirror images for augmentation."""
        section = self.section
        mirrored = 2 if section.selector.augment else 1
        own, judges = ratings.images_of("train"), ratings.images_of("judge_train")
        held, judge_held = ratings.images_of("validation"), ratings.images_of("judge_validation")
        test = ratings.images_of("test")
        images = {
            "selector": own * mirrored + held + test,
            "policy": own + held + test,
            "judge": judges * mirrored + judge_held + test,
            "extractor": ratings.images,
        }
        return self._range([], [self.scorers[name].load(count) for name, count in images.items()])

    def _scoring(self, images: float, *names: str) -> list[Cost]:
        return [self.scorers[name].load(images) for name in names]

    def _generate(self, images: int) -> Sequence[Cost]:
        """Return the passes that generate ``images`` images at once."""
        return self.loads.denoise(images) * self.section.generator.steps, self.loads.decode(images)

    def _range(self, passes: Sequence[Cost], scoring: Sequence[Cost]) -> Range:
        """Return the range of passes of the generator and of float32 passes of the scorers, which follow each other."""
        half = "bfloat16" if self.gpu.bf16 else "float16"
        own = _speeds(self.gpu, Arithmetic(half if self.loads.setting.value == 2 else "float32"))
        single = _speeds(self.gpu, Arithmetic("float32"))
        low, high = (
            sum(map(one.seconds, passes)) + sum(map(other.seconds, scoring))
            for one, other in zip(own, single, strict=True)
        )
        return Range(low, high)


def _scorers(section: Imagegen, ratings: RatingsFacts | None) -> StageWork:
    """Return the optimizer steps of selector, policy and judge."""
    if ratings is None:
        return StageWork()
    own, judges = ratings.ratings_of("train"), ratings.ratings_of("judge_train")
    selector, policy = section.selector, section.policy
    steps = math.ceil(own / selector.batch_size) * selector.epochs + math.ceil(own / policy.batch_size) * policy.epochs
    steps += math.ceil(judges / selector.batch_size) * section.judge.epochs
    return StageWork(steps=steps, images_per_step=selector.batch_size)


def _evaluations(section: Imagegen, count: int) -> StageWork:
    return StageWork(evaluations=count, generated=count * section.judge.images)


def _sft(section: Imagegen, ratings: RatingsFacts | None) -> StageWork:
    """Return the work of ``sft``. The selector can pass every image of its splits."""
    keys = section.update
    pool = 0 if ratings is None else ratings.images_of("train", "validation")
    return StageWork(
        steps=keys.sft_steps,
        images_per_step=keys.sft_batch_size,
        evaluations=1,
        generated=section.judge.images,
        updated=keys.sft_steps * keys.sft_batch_size,
        encoded=pool,
    )


def _ddpo(section: Imagegen) -> StageWork:
    """Return the work of ``ddpo``. The base and every round have the same noise, and the table has another."""
    keys = section.update
    evaluations = keys.rounds + 2
    images = keys.rounds * keys.images_per_round
    return StageWork(
        steps=keys.rounds * min(keys.updates_per_round, _chunks(keys) * section.generator.steps),
        rounds=keys.rounds,
        evaluations=evaluations,
        generated=evaluations * section.judge.images + images,
        updated=images * section.generator.steps,
    )


def _chunks(keys: Update) -> int:
    """Return the number of micro-batches of a round of ``ddpo``."""
    return -(-keys.images_per_round // keys.micro_batch)


def _convolutions(block: Block, positions: float) -> float:
    if isinstance(block, Resnet):
        shortcut = block.inputs * block.outputs if block.inputs != block.outputs else 0
        return 2 * positions * (9 * block.outputs * (block.inputs + block.outputs) + shortcut)
    return 2 * positions * 9 * _width(block) ** 2


def _middle_attention(vae: Vae, side: int) -> float:
    width, positions = vae.channels[-1], _area(side, len(vae.channels) - 1)
    return 8 * positions * width**2 + 4 * positions**2 * width


def _area(side: int, level: int) -> float:
    """Return the number of positions of a level."""
    across = side / (1 << level)
    return across * across


def _width(block: Block) -> int:
    if isinstance(block, Sampler | Transformer):
        return block.width
    return block.outputs


def _speeds(gpu: GpuFigures, arithmetic: Arithmetic) -> tuple[Speed, Speed]:
    middle = speeds(gpu, arithmetic)[0].faster(1 / RANGE_FACTOR)
    return middle.faster(FAST), middle.faster(SLOW)


def _sum(*ranges: Range) -> Range:
    return Range(sum(one.low for one in ranges), sum(one.high for one in ranges))
