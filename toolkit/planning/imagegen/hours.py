"""How long the stages of [imagegen] take on a GPU, as ranges from FLOPs, bytes moved and kernel launches.

Rates are those of ``toolkit.planning.duration``. The slow end has more room than there, because published hours of DDPO
(Black et al. 2023) are a third above the same sum for an A100, and small GPUs reach less of their peak.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.planning.duration import SPREAD, Arithmetic, Range, Speed, speeds
from toolkit.planning.gpu import GpuFigures
from toolkit.planning.imagegen.encoders import Scorer
from toolkit.planning.imagegen.load import ImagegenLoads
from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.planning.imagegen.work import StageWork
from toolkit.planning.passes import Load
from toolkit.recipe.imagegen import Imagegen

FAST, SLOW = 1.5, 0.51
"""Speeds of both ends of a range, relative to the middle of other recipes."""
ASSUMPTIONS = (
    f"assumed: {FAST} times and {SLOW} times the speed that is the middle of the range for other recipes",
    "the selector passes every image that sft can be trained on, and no guard stops a method",
    "not included: download, loading, reading of images, training of the scorers' heads, checkpoints",
)
"""Assumptions behind the ranges, which the plan prints."""


@dataclass(frozen=True, slots=True)
class Hours:
    """Durations of one recipe with one pipeline on one GPU.

    Attributes:
        section: the recipe's section.
        loads: of the pipeline.
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

    def sft_images(self, images: int) -> Range:
        """Return the duration of a forward and backward pass over some images."""
        return self._range([self.loads.update(images, guided=False)], [])

    def ddpo_pairs(self, images: int) -> Range:
        """Return the same for images at one denoising step each, with guidance."""
        return self._range([self.loads.update(images)], [])

    def round(self) -> Range:
        """Return the duration of a round of ``ddpo`` without its evaluation."""
        keys = self.section.update
        chunks, steps = -(-keys.images_per_round // keys.micro_batch), self.section.generator.steps
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
        update = self.sft_images(micro) * (work.updated / micro)
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

    def _scoring(self, images: float, *names: str) -> list[Load]:
        return [self.scorers[name].load(images) for name in names]

    def _generate(self, images: int) -> Sequence[Load]:
        """Return the passes that generate ``images`` images at once."""
        return self.loads.denoise(images) * self.section.generator.steps, self.loads.decode(images)

    def _range(self, passes: Sequence[Load], scoring: Sequence[Load]) -> Range:
        """Return the range of passes of the generator and of float32 passes of the scorers, which follow each other."""
        half = "bfloat16" if self.gpu.bf16 else "float16"
        own = _speeds(self.gpu, Arithmetic(half if self.loads.setting.value == 2 else "float32"))
        single = _speeds(self.gpu, Arithmetic("float32"))
        low, high = (
            sum(map(one.seconds, passes)) + sum(map(other.seconds, scoring))
            for one, other in zip(own, single, strict=True)
        )
        return Range(low, high)


def _speeds(gpu: GpuFigures, arithmetic: Arithmetic) -> tuple[Speed, Speed]:
    middle = speeds(gpu, arithmetic)[0].faster(1 / SPREAD)
    return middle.faster(FAST), middle.faster(SLOW)


def _sum(*ranges: Range) -> Range:
    return Range(sum(one.low for one in ranges), sum(one.high for one in ranges))
