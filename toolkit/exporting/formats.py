"""Export the adapter or merged weights: write to a temporary folder, reload, verify, and rename the folder."""

import logging
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError, warn
from toolkit.evaluation.stage_context import Context
from toolkit.exporting.atomic_output import OutputFolder, megabytes
from toolkit.exporting.model_card import write_card
from toolkit.exporting.results import AdapterExport, FormatExport, MergedExport, Verification
from toolkit.exporting.serving import Serving, commands
from toolkit.exporting.verification import (
    BOUNDS,
    Bound,
    Comparison,
    GreedyCompletions,
    VerificationSet,
    compare,
    generate_completions,
)
from toolkit.models import Backend
from toolkit.models.backend import MergeComparison
from toolkit.models.image_limits import write_pixel_limit
from toolkit.models.model_paths import public_name
from toolkit.runfolder import read_json, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """What is exported and how it is verified.

    Attributes:
        context: the run.
        backend: loads and writes the model.
        weights: the trained weights.
        verification_set: the samples of the verification. Without samples nothing is verified.
        serving: settings of servers.
    """

    context: Context
    backend: Backend
    weights: Path
    verification_set: VerificationSet
    serving: Serving

    def save_card(self, folder: Path, export: FormatExport) -> None:
        """Write the model card of a format in its temporary folder."""
        context = self.context
        write_card(folder, context.run, context.recipe, self.weights, export, self.serving)


def export_adapter(job: ExportJob, output: OutputFolder) -> AdapterExport:
    """Export the adapter, and compare the reloaded model with the run's model.

    Args:
        job: the export.
        output: the folder to write to, under its temporary name. The caller commits it.

    Raises:
        ModelError: the reloaded model generates different completions. Its files stay in ``adapter.differs``.
        Interrupted: after a signal.
    """
    written = _write(job, "adapter", output.partial)
    verification = _verify(job, "adapter", output, written, BOUNDS["32"])
    export = AdapterExport(
        folder=job.context.run.relative(output.target),
        megabytes=megabytes(output.partial),
        digest=output.seal(),
        commands=tuple(commands("adapter", output.partial, job.serving)),
        bits=written.bits,
        verification=verification,
    )
    job.save_card(output.partial, export)
    return export


def export_merged(job: ExportJob, output: OutputFolder) -> MergedExport:
    """Export merged weights, and compare the reloaded model with the run's model on an unquantized base.

    Args and Raises as ``export_adapter``.
    """
    written = _write(job, "merged", output.partial)
    verification = _verify(job, "merged", output, written, BOUNDS["16" if written.bits < 32 else "32"])
    export = MergedExport(
        folder=job.context.run.relative(output.target),
        megabytes=megabytes(output.partial),
        digest=output.seal(),
        commands=tuple(commands("merged", output.partial, job.serving)),
        bits=written.bits,
        dequantized=written.dequantized,
        merge=written.merge,
        verification=verification,
    )
    job.save_card(output.partial, export)
    return export


@dataclass(frozen=True, slots=True)
class _Written:
    """A written format.

    Attributes:
        before: the completions of the run's model.
        bits: bits of the base weights.
        dequantized: whether the base was dequantized.
        merge: comparison of the merged matrices. None: peft merged in memory, or nothing was merged.
    """

    before: GreedyCompletions
    bits: int
    dequantized: bool
    merge: MergeComparison | None


def _write(job: ExportJob, name: str, target: Path) -> _Written:
    """Write a format. The model is freed at the end, before the exported one is loaded."""
    policy = job.backend.load(job.context.recipe, job.weights, trainable=False, mergeable=name == "merged")
    before = generate_completions(job.backend, policy, job.verification_set)
    merge = None
    if name == "merged":
        merge = job.backend.save_merged(policy, target)
        if merge is not None:
            log.info("export: %d merged matrices equal base + scale * B A within rounding", merge.matrices)
        elif policy.dequantized:
            warn(
                "export.merged_not_compared",
                "the base is dequantized, so merged matrices are not compared with base + scale * B A",
                place="merged",
            )
    else:
        job.backend.save(policy, target)
    _set_public_base_name(target)
    if job.serving.limit is not None:
        write_pixel_limit(target, job.serving.limit)
    return _Written(before, policy.bits, policy.dequantized, merge)


def _set_public_base_name(folder: Path) -> None:
    """Set the base model's public name in an adapter's configuration, instead of a path of this machine."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    settings = read_json(file)
    base = settings.get("base_model_name_or_path")
    if base and public_name(base) != base:
        write_json(file, {**settings, "base_model_name_or_path": public_name(base)})


def _verify(job: ExportJob, name: str, output: OutputFolder, written: _Written, bound: Bound) -> Verification | None:
    """Reload a written format and compare its completions. None: no samples verify this export."""
    if not job.verification_set.rows:
        return None
    job.context.stop.check(f"{name} was not verified yet")
    policy = job.backend.load(job.context.recipe, output.partial, trainable=False, mergeable=name == "merged")
    after = generate_completions(job.backend, policy, job.verification_set, written.before.texts)
    compared = compare(written.before, after)
    if not compared.fits(bound):
        output.partial.replace(output.differs)
        raise _difference_error(output.differs, written.before, after, compared, bound)
    _log_comparison(name, compared, written.bits, "held-out" if job.verification_set.held_out else "training")
    return job.verification_set.verification(compared, after)


def _difference_error(
    folder: Path, before: GreedyCompletions, after: GreedyCompletions, compared: Comparison, bound: Bound
) -> ModelError:
    first = compared.differing[0] if compared.differing else 0
    change = f"first: {before.texts[first]!r} became {after.texts[first]!r}"
    return ModelError(
        "export.answers_differ",
        "reloaded weights must generate the same greedy completions",
        place=folder,
        value=f"{len(compared.differing)} of {compared.samples} differ; a token's log-probability moved by up to "
        f"{compared.gap:.3g} (bound {bound.gap}); {change}",
        remedy="Compare the precision and the library versions. The weights are kept for inspection.",
    )


def _log_comparison(name: str, compared: Comparison, bits: int, split: str) -> None:
    if compared.differing:
        warn(
            "export.answers_differ_by_rounding",
            f"completions should be the same after export, but merging rounds to {bits} bits",
            place=name,
            value=f"{len(compared.differing)} of {compared.samples}",
        )
    else:
        same = f"reproduces all {compared.samples} completions of {split} samples after reloading"
        log.info("export: %s %s (log-probabilities within %.2g)", name, same, compared.gap)
