"""GPU memory of work with a Stable Diffusion 1.x or 2.x pipeline: formulas over its blocks. Disk of the run.

The counts follow the tensors that torch saves, operation by operation: a residual block keeps the inputs of its norms,
activations and convolutions, a transformer block those of its norms and linear layers, with queries, keys and values.
Attention keeps no scores (flash or memory-efficient kernels). Checked against an allocation trace of Stable Diffusion
1.5 at its real size in 512 and 768 pixels, not against a GPU. Formulas are at the trace or up to 10 % above it.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import Problem
from toolkit.planning.disk import SPARE, Disk
from toolkit.planning.findings import PlanFinding, warning
from toolkit.planning.imagegen.layout import Layout, Resnet, Sampler, Transformer, Unet
from toolkit.planning.imagegen.models import FLOAT, Base, Encoder, Scorer, cached
from toolkit.planning.imagegen.ratings import RatingsFacts
from toolkit.planning.memory import CONTEXT, Moment
from toolkit.recipe import Recipe
from toolkit.recipe.imagegen import Imagegen
from toolkit.recipe.imagegen_sections import TINY_ENCODERS

RESNET_IN, RESNET_OUT = {2: 10, 4: 8}, {2: 12, 4: 16}
"""Bytes of a value -> bytes that a residual block keeps for each number of its input and of its output. In 16 bits,
autocast computes norms and activations in float32."""
TRANSFORMER = {2: 71.5, 4: 106}
"""The same of a transformer block, for each number of its input."""
PROMPT = 4
"""Tensors of a prompt's keys and values that each transformer block keeps."""
BACKWARD = {2: 32, 4: 44}
"""Bytes of a backward pass at its peak for each number of the finest level."""
UNCHECKPOINTED = 0.41
"""Fraction that gradient checkpointing leaves on the GPU, besides the blocks' inputs, as a first trace had it. A second
trace and allocations counted on a CPU were near 0 instead, so that the estimate is on the safe side."""
WORKING = {2: 15, 4: 16}
"""Bytes of a pass without gradients for each number of the largest input of a residual block."""
DECODING, ENCODING = {2: 3.78, 4: 3.1}, {2: 5.3, 4: 4.4}
"""Tensors of the VAE that are alive at its peak, in units of its largest one."""
TRAINING_PIECES, PASS_PIECES = 0.13, 0.5
"""Memory that torch's allocator holds in pieces of no use, relative to activations of training and of other passes."""
DECODING_PIECES, ENCODING_PIECES = {2: 2.25, 4: 3.0}, 2.1
"""The same for the VAE, in units of its largest tensor."""

ADAM = 2
"""Moments of AdamW for each parameter."""
TINY_LORA, TINY_SCORER = 3_072, 400_000
"""Parameters of a LoRA of rank 1 on the DiT that ships, and of an encoder of random parameters, about."""
MOMENTS = 2
"""Mean and standard deviation of each hidden layer's states."""


@dataclass(frozen=True, slots=True)
class ImagegenSetting:
    """The settings that the GPU memory of a stage depends on, besides the pipeline.

    Attributes:
        side: the side of an image in pixels.
        value: bytes of a parameter and of an activation: 2 under autocast, or 4.
        rank: the rank of the LoRA.
        guided: whether a pass has twice the rows, for classifier-free guidance.
        checkpointing: whether the backward pass recomputes activations.
        micro_batch: images of a forward and backward pass.
        batch: images that are generated at once in an evaluation.
        scorers: bytes of the scoring models that are on the GPU while they compute.
        scoring: bytes of a scoring pass.
        prompts: prompts whose states stay on the GPU during a round.
        factor: pixels for one position of a latent, in each direction.
    """

    side: int = 512
    value: int = 2
    rank: int = 16
    guided: bool = True
    checkpointing: bool = False
    micro_batch: int = 4
    batch: int = 8
    scorers: int = 0
    scoring: int = 0
    prompts: int = 0
    factor: int = 8

    @property
    def latent(self) -> int:
        """Side of a latent."""
        return self.side // self.factor

    def rows(self, images: int) -> int:
        """Return the rows of a pass of the UNet for some images."""
        return images * (2 if self.guided else 1)


@dataclass(frozen=True, slots=True)
class ImagegenMemory:
    """Formulas for one pipeline and setting. Every method returns a moment with its parts."""

    layout: Layout
    setting: ImagegenSetting

    def sft(self) -> Moment:
        """Return an update of ``sft``, which has no guidance."""
        return self._update("sft update", self.setting.micro_batch)

    def ddpo(self) -> Moment:
        """Return an update of ``ddpo``."""
        moment = self._update("ddpo update", self.setting.rows(self.setting.micro_batch))
        return Moment(moment.name, {**moment.parts, "prompts": self._prompts})

    def rollout(self, images: int | None = None, *, trains: bool = False) -> Moment:
        """Return the denoising of ``images`` images (default: of a batch of an evaluation).

        Args:
            images: that are denoised at once.
            trains: whether the optimizer of an update is alive.
        """
        rows = self.setting.rows(self.setting.batch if images is None else images)
        activations = int(rows * pass_bytes(self.layout.unet, self.setting))
        parts = {**self._always(trains), "activations": activations, "prompts": self._prompts if trains else 0}
        return _moment("rollout", parts, int(PASS_PIECES * activations))

    def decode(self, images: int, *, sliced: bool = True) -> Moment:
        """Return the VAE's decoding of latents, one by one if ``sliced``."""
        at_once, value = 1 if sliced else images, self.setting.value
        largest = at_once * _largest(self.layout.vae.channels[1], self.setting)
        done = images * 3 * self.setting.side**2 * value if sliced else 0
        parts = {**self._always(trains=False), "decoding": int(DECODING[value] * largest) + done}
        return _moment("decoding", parts, int(DECODING_PIECES[value] * largest))

    def encode(self, images: int) -> Moment:
        """Return the VAE's encoding of training images."""
        largest = images * _largest(self.layout.vae.channels[0], self.setting)
        parts = {**self._always(trains=False), "encoding": int(ENCODING[self.setting.value] * largest)}
        return _moment("encoding", parts, int(ENCODING_PIECES * largest))

    def score(self) -> Moment:
        """Return a pass of the scoring models, which are on the GPU with the generator and its optimizer."""
        scoring = self.setting.scoring
        parts = {**self._always(trains=True), "scorers": self.setting.scorers, "scoring": scoring}
        return _moment("scoring", parts, int(TRAINING_PIECES * scoring))

    @property
    def _prompts(self) -> int:
        return self.setting.prompts * self.layout.text.tokens * self.layout.unet.text * self.setting.value

    @property
    def _lora(self) -> int:
        return FLOAT * self.layout.unet.lora_parameters(self.setting.rank)

    def _always(self, trains: bool) -> dict[str, int]:
        value = self.setting.value
        return {
            "unet": value * self.layout.unet.parameters,
            "vae": value * self.layout.vae.parameters,
            "text_encoder": value * self.layout.text.parameters,
            "lora": self._lora,
            "optimizer": 2 * self._lora if trains else 0,
        }

    def _update(self, name: str, rows: int) -> Moment:
        saved = rows * saved_bytes(self.layout.unet, self.setting) + self._copies
        layer = rows * BACKWARD[self.setting.value] * self.layout.unet.channels[0] * self.setting.latent**2
        parts = {**self._always(trains=True), "gradients": self._lora, "activations": int(saved), "layer": layer}
        return _moment(name, parts, int(TRAINING_PIECES * (saved + layer)))

    @property
    def _copies(self) -> int:
        """The LoRA in 16 bits, which autocast keeps."""
        return self._lora // 2 if self.setting.value < FLOAT else 0


def saved_bytes(unet: Unet, setting: ImagegenSetting) -> float:
    """Return the bytes that a forward pass stores of one row for its backward pass."""
    everything = sum(_saved_activations(unet, setting))
    if not setting.checkpointing:
        return everything
    return UNCHECKPOINTED * everything + sum(_inputs(unet, setting))


def pass_bytes(unet: Unet, setting: ImagegenSetting) -> float:
    """Return the bytes of a forward pass without gradients for one row: skip connections and one block."""
    skips = sum(width * _positions(setting, level) for width, level in unet.skips)
    largest = max(block.inputs * _positions(setting, block.level) for block in unet.blocks if isinstance(block, Resnet))
    return setting.value * skips + WORKING[setting.value] * largest


def plan_imagegen_disk(
    recipe: Recipe, section: Imagegen, base: Base, scorers: Mapping[str, Scorer], ratings: RatingsFacts | None
) -> Disk:
    """Return the parts of the run folder and the downloads.

    A checkpoint holds the LoRA, its file for diffusers, AdamW's moments and the best round's LoRA, and selector and
    policy without frozen encoders. While one is written, there is one more than ``run.keep_checkpoints``.
    """
    lora = FLOAT * _lora(section, base.layout)
    heads = {name: FLOAT * _trained(section, one) for name, one in scorers.items() if name != "extractor"}
    # In stage 1 a checkpoint also has AdamW's moments and the best epoch of selector and policy.
    own = heads["selector"] + heads["policy"]
    each = max((2 + ADAM + 1) * lora + own, (1 + ADAM + 1) * own)
    arms = len(section.update.methods) + int(section.update.control)
    parts = {
        "checkpoints": (recipe.run.keep_checkpoints + 1) * each,
        "LoRA of each method": arms * lora,
        "scorers": sum(heads.values()),
    }
    if section.synthetic is not None:
        parts["synthetic images"] = section.synthetic.images * section.size**2
    elif ratings is not None and recipe.images.disk_cache:
        parts["cache of images (in the cache folder)"] = ratings.images * 3 * section.size**2
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free, cache_free = (shutil.disk_usage(_existing(one)).free for one in (recipe.run_folder.absolute(), cache))
    return Disk(parts, free, _downloads(section, base, scorers), cache, cache_free)


def check_imagegen_disk(recipe: Recipe, disk: Disk) -> Iterator[PlanFinding]:
    """Yield problems and warnings about free disk space, which are estimates."""
    place = f"disk of {recipe.run_folder.parent}"
    free = round(disk.free / 1e9, 1)
    remedy = "Free disk space, lower run.keep_checkpoints, or choose another run.folder."
    if disk.needed > disk.free:
        rule = f"about {disk.needed / 1e9:.1f} GB must be free"
        yield PlanFinding(Problem("plan.disk_too_small", rule, place, free, remedy), certain=False)
    elif disk.needed + SPARE > disk.free:
        rule = f"the run needs about {disk.needed / 1e9:.1f} GB, and {SPARE / 1e9:.0f} GB more should be free"
        yield warning(Problem("plan.disk_nearly_full", rule, place, free, remedy))
    fetched = sum(disk.downloads.values())
    if fetched > disk.cache_free:
        rule = f"{fetched / 1e9:.1f} GB must be free to download {' and '.join(disk.downloads)}"
        place, free = f"disk of {disk.cache}", round(disk.cache_free / 1e9, 1)
        remedy = "Free disk space, or set HF_HOME to a folder on another disk."
        yield PlanFinding(Problem("plan.cache_disk_too_small", rule, place, free, remedy), certain=False)


def _saved_activations(unet: Unet, setting: ImagegenSetting) -> Iterator[float]:
    """Return the bytes of each block. Before the first LoRA, a block keeps only its output, which is joined later."""
    value, graded = setting.value, False
    for block in unet.blocks:
        positions = _positions(setting, block.level)
        if isinstance(block, Transformer):
            graded = True
            yield TRANSFORMER[value] * block.width * positions + PROMPT * value * 77 * block.width
        elif isinstance(block, Sampler):
            yield 2 * value * block.width * positions
        elif graded:
            yield (RESNET_IN[value] * block.inputs + RESNET_OUT[value] * block.outputs) * positions
        else:
            yield value * block.outputs * positions


def _inputs(unet: Unet, setting: ImagegenSetting) -> Iterator[float]:
    """Return the bytes of each block's input. A transformer block's norm and projection are not recomputed."""
    value = setting.value
    for block in unet.blocks:
        width = block.inputs if isinstance(block, Resnet) else block.width
        tensors = 6 if isinstance(block, Transformer) else 1
        yield tensors * value * width * _positions(setting, block.level)


def _positions(setting: ImagegenSetting, level: int) -> int:
    side = math.ceil(setting.latent / (1 << level))
    return side * side


def _largest(width: int, setting: ImagegenSetting) -> int:
    """Return the bytes of the VAE's largest tensor for one image."""
    return int(width * setting.side**2 * setting.value)


def _moment(name: str, parts: dict[str, int], fragmentation: int) -> Moment:
    return Moment(name, {**parts, "fragmentation": fragmentation, "context": CONTEXT})


def _downloads(section: Imagegen, base: Base, scorers: Mapping[str, Scorer]) -> dict[str, int]:
    """Return the bytes of repositories that are not on this machine. Pipelines and encoders are stored in float32."""
    found: dict[str, int] = {}
    if base.state == "reachable" and base.layout is not None:
        found[section.generator.model] = FLOAT * base.layout.parameters
    for one in scorers.values():
        away = not Path(one.name).is_dir() and cached(one.name, "model.safetensors", None) is None
        if one.encoder is not None and away:
            found[one.name] = FLOAT * _stored(one.encoder)
    return found


def _stored(encoder: Encoder) -> int:
    return encoder.vision.parameters + (encoder.text.parameters if encoder.text else 0)


def _lora(section: Imagegen, layout: Layout | None) -> int:
    rank = section.generator.lora.r
    return TINY_LORA * rank if layout is None else layout.unet.lora_parameters(rank)


def _trained(section: Imagegen, scorer: Scorer) -> int:
    """Return the number of parameters of heads or fusion layers, and of an encoder that is trained."""
    tunings = {
        "selector.encoder": section.selector.tuning,
        "policy.encoder": section.policy.tuning,
        "judge.encoder": section.judge.tuning,
    }
    full = tunings[scorer.key] == "full"
    if scorer.encoder is None:
        return TINY_SCORER if scorer.name in TINY_ENCODERS else 0
    vision = scorer.encoder.vision
    features = (MOMENTS * min(section.selector.layers, vision.layers) + 1) * vision.width
    own = vision.parameters if full else 0
    if scorer.key == "policy.encoder":
        text = scorer.encoder.text.width if scorer.encoder.text else 0
        return own + section.policy.projection * (features + text)
    views = 3 if scorer.views > 1 else 1
    return own + section.selector.heads * section.selector.hidden * views * features


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
