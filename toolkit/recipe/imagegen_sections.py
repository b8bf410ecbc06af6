"""The tables of [imagegen]: selector, policy, generator, update, judge, guards, windows and synthetic data."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from toolkit.errors import Problem
from toolkit.recipe.base import BrokenRules, Section
from toolkit.recipe.sections import MAX_NUMBER

FRACTIONS_MUST_SUM_TO_1 = 1e-9

SYNTHETIC_MODALITIES = ("OCT", "CT", "X-Ray", "MRI")
"""Modalities of synthetic images."""
SYNTHETIC_EXPERT_LEVELS = (1, 2, 3)
"""Levels of the simulated experts."""

Level = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
"""A rating, the weight of an expert level, or the centre of a window."""
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1, pattern=r"\S")]
Tuning = Literal["auto", "frozen", "full"]

BIOMEDCLIP = "biomedclip"
TINY_ENCODERS = ("tiny", "tiny-wide", "tiny-vit")
"""Encoders of random parameters, which are trained."""
TINY_GENERATOR = "tiny"
"""The generator that ships with the package."""

MAX_IMAGES = 64
MAX_PIXELS = 2**20
"""Pixels of a pass. DINOv2 base at 518 pixels then takes 3 images, CLIP large at 224 pixels 20, and each of them needs
less than 1 GiB for hidden states. Tokens per pass, which decide how busy a GPU is, are about the same for both."""


class ImagegenSection(Section):
    """A table of [imagegen], whose keys have their docstrings as descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FixedWindow(ImagegenSection):
    """The window of one modality, in the file's units after DICOM's rescale (Hounsfield units for CT)."""

    preset: Literal["ct_lung", "ct_soft_tissue"] | None = None
    """A common CT window: ``ct_lung`` (centre -600, width 1500) or ``ct_soft_tissue`` (centre 40, width 400)."""
    centre: Level | None = None
    """The value that becomes mid-grey."""
    width: float | None = Field(None, gt=0, le=MAX_NUMBER)
    """The range of values from black to white."""

    @model_validator(mode="after")
    def _preset_or_numbers(self) -> "FixedWindow":
        numbers = (self.centre is not None, self.width is not None)
        if any(numbers) if self.preset else not all(numbers):
            value = {"preset": self.preset, "centre": self.centre, "width": self.width}
            rule = "must have either preset, or centre and width"
            raise BrokenRules(
                [
                    Problem(
                        "recipe.window_incomplete",
                        rule,
                        value=value,
                        remedy="Remove the others, or add the missing one.",
                    )
                ]
            )
        return self


class SyntheticRatings(ImagegenSection):
    """Synthetic images and simulated expert ratings, generated instead of reading files."""

    images: int = Field(600, ge=12, le=1_000_000)
    """Number of rated images."""
    raters_per_image: int = Field(2, ge=1, le=6)
    """Simulated experts who rate each image, of six: two for each expert level."""
    degraded: Fraction = 0.6
    """Fraction of the images with noise, stripes, blur, low contrast or a finding other than the prompt's."""


class Selector(ImagegenSection):
    """The quality model: an image to a score in [0, 1], by a vision encoder and a CORN ordinal head."""

    encoder: Name = "openai/clip-vit-large-patch14"
    """A Hub name or folder of a Transformers vision tower, ``biomedclip`` (needs open_clip), or one of random
    parameters that is trained: ``tiny`` and ``tiny-wide`` (convolutions), ``tiny-vit`` (a transformer)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub encoder."""
    tuning: Tuning = "auto"
    """Whether the encoder is trained. The heads always are. ``auto``: only an encoder of random parameters."""
    layers: int = Field(4, ge=1, le=1000)
    """Hidden layers, evenly spaced up to the last, whose features are concatenated."""
    crop_grid: int = Field(2, ge=0, le=64)
    """This many times this many crops at the encoder's own size beside the whole image, because resizing removes the
    noise that an expert rates. Images no larger than the encoder's own size are enlarged and have none."""
    heads: int = Field(3, ge=2, le=1000)
    """Ordinal heads with different seeds. The reward is their mean minus one standard deviation."""
    hidden: int = Field(256, ge=1, le=65_536)
    """Width of each head's hidden layer."""
    epochs: int = Field(20, ge=1, le=100_000)
    """Passes over the selector's training ratings."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Rated images in an optimizer step."""
    learning_rate: float = Field(1e-3, ge=1e-12, le=10)
    """AdamW learning rate of the heads and of trained encoder parameters."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """AdamW weight decay."""
    augment: bool = False
    """Mirror and shift training images of selector and judge. The policy is never augmented: a prompt can name a
    side."""
    validation: PositiveFraction = 0.15
    """Fraction of the selector's groups that is held out to select the threshold."""
    target_precision: PositiveFraction = 0.8
    """The threshold is the lowest score at which this fraction of passed validation images is rated well."""
    good_rating: Level | None = None
    """The lowest rating that counts as rated well. Default: the highest of ``rating_range``."""


class Policy(ImagegenSection):
    """The agreement model: an image and a prompt to a score in [0, 1]. It is a reward model, not the RL policy."""

    encoder: Name = "openai/clip-vit-large-patch14"
    """A Hub name or folder of a dual tower (image and text), or ``tiny`` (convolutions and word embeddings)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub encoder."""
    tuning: Tuning = "auto"
    """Whether the towers are trained. The fusion layers always are. ``auto``: only towers of random parameters."""
    projection: int = Field(64, ge=1, le=65_536)
    """Length of the projected image and text, which are fused as [image, text, image * text, |image - text|]."""
    hidden: int = Field(256, ge=1, le=65_536)
    """Width of the hidden layer over the fused features."""
    target: Literal["match", "rating"] = "match"
    """The target of an image with its own prompt: 1, or its normalised rating. A mismatched prompt has target 0."""
    epochs: int = Field(20, ge=1, le=100_000)
    """Passes over the policy's training ratings."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Images in an optimizer step, each with one matched and one mismatched prompt. Half of the mismatched prompts are
    of the image's modality (hard negatives), and none is its own text."""
    learning_rate: float = Field(1e-3, ge=1e-12, le=10)
    """AdamW learning rate."""
    weight_decay: float = Field(0.01, ge=0, le=100)
    """AdamW weight decay."""


class GeneratorLora(ImagegenSection):
    """The adapter on the generator's attention layers."""

    r: int = Field(16, ge=1, le=4096)
    """Rank."""
    alpha: int = Field(16, ge=1, le=1_000_000)
    """Scale: the update is multiplied by alpha / r."""


class Generator(ImagegenSection):
    """The image generator and how it samples."""

    model: Name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """A Hub name or folder of a Stable Diffusion 1.x or 2.x pipeline, or ``tiny`` (shipped, 32 px, for CPUs)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub pipeline."""
    licence: Name | None = None
    """Licence of the base, such as ``creativeml-openrail-m``, for bases other than Stable Diffusion 1.x and 2.x."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Data type of the frozen parameters and of autocast. ``auto``: 16 bits on a GPU, float32 on a CPU."""
    lora: GeneratorLora = GeneratorLora()
    """The adapter."""
    steps: int = Field(20, ge=2, le=1000)
    """DDIM steps of an image."""
    guidance_scale: float = Field(5.0, ge=1, le=1000)
    """Classifier-free guidance. 1 switches it off, which halves the time."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Images that are generated at once."""
    gradient_checkpointing: bool = False
    """Saves 14 to 33 % of the GPU memory of an update for 30 to 35 % more time."""


class Refresh(ImagegenSection):
    """Retraining of selector and policy between rounds on images that the selector passed."""

    enabled: bool = False
    """Retrain after each round. It is rolled back if held-out agreement drops."""
    anchors_fraction: float = Field(0.5, gt=0, lt=1)
    """Fraction of a refresh's training images that are low-rated images of the ratings. Without them, a selector
    forgets bad images."""
    epochs: int = Field(1, ge=1, le=100_000)
    """Passes over the passed images of a round."""
    learning_rate: float = Field(1e-4, ge=1e-12, le=10)
    """AdamW learning rate, usually lower than in stage 1."""


class Update(ImagegenSection):
    """How the generator is updated. Each method starts from the base and is a row of the results table."""

    methods: tuple[Literal["sft", "ddpo"], ...] = ("sft",)
    """``sft``: fine-tuning on rated images that the selector passes, weighted. ``ddpo``: group-normalised policy
    gradient on the DDIM trajectory (Black et al. 2023, arXiv 2305.13301)."""
    control: bool = True
    """Add a row for ``sft`` on as many randomly selected images, with the same number of optimizer steps."""
    sft_steps: int = Field(1000, ge=1, le=MAX_NUMBER)
    """Optimizer steps of ``sft`` and of its control."""
    sft_learning_rate: float = Field(1e-4, ge=1e-12, le=10)
    """AdamW learning rate of ``sft`` and of its control."""
    sft_batch_size: int = Field(16, ge=1, le=4096)
    """Images in an optimizer step of ``sft``."""
    rounds: int = Field(10, ge=1, le=100_000)
    """Rounds of ``ddpo``: generate, score, update, evaluate."""
    prompts_per_round: int = Field(32, ge=1, le=4096)
    """Prompts of a round."""
    images_per_prompt: int = Field(8, ge=2, le=1024)
    """Images of one prompt: the group in which rewards are normalised."""
    updates_per_round: int = Field(2, ge=1, le=65_536)
    """Optimizer steps of a round. Each uses an equal part of the shuffled pairs of micro-batch and denoising step."""
    learning_rate: float = Field(3e-4, ge=1e-12, le=10)
    """AdamW learning rate of ``ddpo``."""
    clip_range: float = Field(1e-4, gt=0, lt=1)
    """Clip range of the ratio of probabilities (means over dimensions, so it is small)."""
    kl: float = Field(0.0, ge=0, le=1000)
    """Weight of the KL divergence from the base."""
    selector_power: float = Field(1.0, ge=0, le=100)
    """The reward is selector ** selector_power * policy ** policy_power."""
    policy_power: float = Field(1.0, ge=0, le=100)
    """See ``selector_power``."""
    micro_batch: int = Field(4, ge=1, le=4096)
    """Images in a forward and backward pass. Gradients are accumulated up to an optimizer step."""
    max_grad_norm: float = Field(1.0, gt=0, le=MAX_NUMBER)
    """Gradients are clipped to this norm."""
    refresh: Refresh = Refresh()
    """Retraining of selector and policy between rounds."""

    @property
    def images_per_round(self) -> int:
        """Images that one round generates."""
        return self.prompts_per_round * self.images_per_prompt

    @model_validator(mode="after")
    def _methods_are_distinct(self) -> "Update":
        if not self.methods or len(set(self.methods)) < len(self.methods):
            rule, value = "must name at least one method, each once", list(self.methods)
            raise BrokenRules([Problem("recipe.update_methods_repeated", rule, "methods", value, "Correct the list.")])
        return self

    @model_validator(mode="after")
    def _control_has_its_method(self) -> "Update":
        if self.control and "sft" not in self.methods:
            rule, remedy = 'must be false unless update.methods names "sft"', "Set control = false."
            raise BrokenRules([Problem("recipe.control_without_sft", rule, "control", True, remedy)])
        return self

    @model_validator(mode="after")
    def _reward_depends_on_something(self) -> "Update":
        if not (self.selector_power or self.policy_power):
            rule = "selector_power and policy_power must not both be 0, because every reward would be 1"
            raise BrokenRules([Problem("recipe.reward_constant", rule, remedy="Raise one of them.")])
        return self


class Fractions(ImagegenSection):
    """Fractions of the patients (or images) that train the selector, train the judge, and test both."""

    selector: PositiveFraction = 0.4
    """Trains selector and policy."""
    judge: PositiveFraction = 0.4
    """Trains the judge."""
    test: PositiveFraction = 0.2
    """Tests selector, policy and judge."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> "Fractions":
        total = self.selector + self.judge + self.test
        if abs(total - 1) > FRACTIONS_MUST_SUM_TO_1:
            rule = "selector + judge + test must be 1"
            raise BrokenRules(
                [Problem("recipe.fractions_not_one", rule, value=round(total, 9), remedy="Change one of them.")]
            )
        return self

    @property
    def by_split(self) -> Mapping[str, float]:
        """Split -> fraction, in the order of the table."""
        return {"selector": self.selector, "judge": self.judge, "test": self.test}


class Judge(ImagegenSection):
    """The model that scores generated images and is never a reward."""

    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of the judge's initialisation and data order. It must differ from ``run.seed``."""
    encoder: Name = "facebook/dinov2-base"
    """The judge's vision tower. It must differ from ``selector.encoder``."""
    revision: str | None = None
    """Commit, tag or branch of a Hub encoder."""
    tuning: Tuning = "auto"
    """Whether the encoder is trained. ``auto``: only an encoder of random parameters."""
    epochs: int = Field(20, ge=1, le=100_000)
    """Passes over the judge's training ratings."""
    learning_rate: float = Field(1e-3, ge=1e-12, le=10)
    """AdamW learning rate."""
    fractions: Fractions = Fractions()
    """How the ratings are divided."""
    images: int = Field(384, ge=2, le=1_000_000)
    """Generated images of an evaluation, with the same prompts and noise for all methods. 384 resolve a difference of
    0.02."""
    features: int = Field(64, ge=1, le=64)
    """Features of the extractor for FID and KID. FID needs at least four images for each of them."""
    bootstrap: int = Field(2000, ge=100, le=100_000)
    """Bootstrap samples for intervals, drawn by prompt."""


class Guards(ImagegenSection):
    """Limits that an update must keep. Each is logged in every round."""

    action: Literal["stop", "log"] = "stop"
    """``stop``: end the update and restore the best checkpoint. ``log``: only report it."""
    judge_evaluations: int = Field(2, ge=1, le=100_000)
    """Fires if the judge's score falls by more than its interval over this number of evaluations."""
    min_diversity: Fraction = 0.6
    """Fires if the diversity of generated images is below this fraction of the real images'."""
    max_kl: float = Field(1.0, gt=0, le=MAX_NUMBER)
    """Fires if the KL divergence from the base is above this value."""
    copy_quantile: Fraction = 0.01
    """Quantile of the distances between training images that counts as suspiciously close."""
    max_copies: Fraction = 0.05
    """Fires if a larger fraction of the generated images is that close to a training image."""
    advantage_clip: float = Field(5.0, ge=0.001, le=MAX_NUMBER)
    """Advantages are clipped to plus and minus this value. In a group of G images none is beyond
    sqrt(G - 1), so that with 26 images of a prompt or fewer the default never clips."""
    max_clipped: Fraction = 0.1
    """Fires if a larger fraction of the advantages is clipped. It only logs. No more than 1 / advantage_clip ** 2
    can be clipped, so that it needs an ``advantage_clip`` below 3.16 for the default."""


def most_clipped(clip: float, group: int) -> float:
    """Return an upper bound of the fraction of a group's advantages that are beyond plus and minus ``clip``.

    Their mean is 0 and their standard deviation 1, so that the largest is at most sqrt(group - 1), and k of them beyond
    the clip need k * clip ** 2 <= group.

    >>> most_clipped(5.0, 26), most_clipped(2.0, 8), most_clipped(5.0, 100)
    (0.0, 0.25, 0.04)
    """
    if clip >= math.sqrt(group - 1):
        return 0.0
    return min(group, math.floor(group / clip**2)) / group


def scoring_batch(side: int) -> int:
    """Return the number of images that an encoder takes in one pass.

    Args:
        side: the side of the images that the encoder takes, in pixels.

    >>> scoring_batch(32), scoring_batch(224), scoring_batch(518), scoring_batch(2048)
    (64, 20, 3, 1)
    """
    return max(1, min(MAX_IMAGES, MAX_PIXELS // side**2))
