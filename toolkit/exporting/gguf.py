"""Export GGUF: convert the merged weights, quantize them, check the metadata, and verify them with llama.cpp."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.exporting.atomic_output import OutputFolder, megabytes
from toolkit.exporting.formats import ExportJob
from toolkit.exporting.results import GgufExport, GgufFile, Verification
from toolkit.exporting.serving import commands, write_modelfiles
from toolkit.exporting.verification import (
    BOUNDS,
    Comparison,
    GreedyCompletions,
    compare,
    compare_lines,
    generate_completions,
)
from toolkit.models.llamacpp import CONVERTED, Child, require_for
from toolkit.models.llamacpp.convert import convert
from toolkit.models.llamacpp.files import QUANTIZATIONS, Expected, check_metadata
from toolkit.runfolder import append_line, free_name

log = logging.getLogger(__name__)

SHOWN = 3
"""Completions in the error of a failed verification."""


def export_gguf(job: ExportJob, merged: Path, output: OutputFolder) -> GgufExport:
    """Export language models and projector, and compare each quantization with the merged weights.

    All completions are in ``gguf.comparison.jsonl`` beside the folder.

    Args:
        job: the export.
        merged: the folder of the merged weights.
        output: the folder to write to, under its temporary name. The caller commits it.

    Raises:
        MissingExtraError: the converter or llama.cpp is not installed.
        Interrupted: after a signal.
        ModelError: the weights cannot be converted, the metadata is wrong, or too many completions of a quantization
            differ. The files then stay in ``gguf.differs``.
    """
    section = job.context.recipe.export_settings
    quant = tuple(dict.fromkeys(section.quant))
    require_for(quant, verify=bool(job.verification_set.rows))
    output.partial.mkdir(parents=True)
    files = _write(job, merged, output.partial, quant)
    expected = _expected(job, merged)
    metadata = [check_metadata(file, files.mmproj, name, expected) for name, file in files.models.items()]
    verified = _verify(job, merged, files, output) if job.verification_set.rows else {}
    write_modelfiles(output.partial, job.serving)
    export = GgufExport(
        folder=job.context.run.relative(output.target),
        megabytes=megabytes(output.partial),
        digest=output.seal(),
        commands=tuple(commands("gguf", output.partial, job.serving)),
        files={
            name: GgufFile(file.name, megabytes(file), QUANTIZATIONS[name].bits, verified.get(name))
            for name, file in files.models.items()
        },
        mmproj=files.mmproj.name,
        mmproj_megabytes=megabytes(files.mmproj),
        metadata=metadata[0],
    )
    job.save_card(output.partial, export)
    return export


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of an export.

    Attributes:
        models: quantization -> language model.
        mmproj: the projector.
    """

    models: Mapping[str, Path]
    mmproj: Path


def _write(job: ExportJob, merged: Path, folder: Path, quant: Sequence[str]) -> _Files:
    """Convert the float formats, and quantize the others from f16, which is deleted unless the recipe has it."""
    run = job.context.recipe.run.name
    models = {name: folder / f"{run}-{quantization.label}.gguf" for name, quantization in QUANTIZATIONS.items()}
    mmproj = folder / f"mmproj-{run}-f16.gguf"
    coarse = [name for name in quant if name not in CONVERTED]
    for name in CONVERTED:
        if name in quant or (name == "f16" and coarse):
            convert(merged, models[name], mmproj, name, name=run)
    if coarse:
        with Child() as child:
            for name in coarse:
                child.quantize(models["f16"], models[name], name)
    if "f16" not in quant:
        models["f16"].unlink(missing_ok=True)
    return _Files({name: models[name] for name in quant}, mmproj)


def _expected(job: ExportJob, merged: Path) -> Expected:
    """Return the metadata that the files must have, from the files of the merged weights."""
    from transformers import AutoConfig, GenerationConfig

    from toolkit.models.chat_template import adds_bos, render_prompt
    from toolkit.models.messages import conversation

    policy = job.backend.load_without_model(job.context.recipe)
    processor, text = policy.processor, AutoConfig.from_pretrained(merged).get_text_config()
    stops = GenerationConfig.from_pretrained(merged).eos_token_id
    prompt = render_prompt(processor, conversation("question", 0))
    size = getattr(processor.image_processor, "size", None) or {}
    first = processor.tokenizer("question")["input_ids"][0]
    return Expected(
        vocabulary=text.vocab_size,
        context=text.max_position_embeddings,
        bos=processor.tokenizer.bos_token_id,
        ends=frozenset([stops] if isinstance(stops, int) else stops or []) | {policy.turn_end.id},
        chat_template=processor.chat_template,
        starts_with_bos=not adds_bos(processor, prompt) or first == processor.tokenizer.bos_token_id,
        image_size=size.get("height"),
    )


def _verify(job: ExportJob, merged: Path, files: _Files, output: OutputFolder) -> Mapping[str, Verification]:
    """Return quantization -> its verification against the merged weights. Raises ModelError as ``export_gguf``."""
    from toolkit.models.gguf import GgufBackend

    recipe = job.context.recipe
    policy = job.backend.load(recipe, merged, trainable=False, mergeable=True)
    before = generate_completions(job.backend, policy, job.verification_set)
    del policy  # frees its memory before llama.cpp loads
    after: dict[str, GreedyCompletions] = {}
    verified: dict[str, Verification] = {}
    problems: list[str] = []
    for name, file in files.models.items():
        job.context.stop.check(f"gguf {name} was not verified yet")
        backend = GgufBackend()
        loaded = backend.load(recipe, file, trainable=False)
        after[name] = generate_completions(backend, loaded, job.verification_set, before.texts)
        loaded.model.close()
        compared = compare(before, after[name])
        verified[name] = job.verification_set.verification(compared, after[name])
        problems += _problems(name, compared, backend.mismatched_prompts)
    lines = compare_lines(job.verification_set, before, after)
    _save_lines(lines, output)
    if problems:
        output.partial.replace(output.differs)
        raise _difference_error(output.differs, problems, [line for line in lines if not line["same"]])
    return verified


def _problems(name: str, compared: Comparison, mismatched_prompts: int) -> list[str]:
    bound, equal = BOUNDS[name], compared.samples - len(compared.differing)
    same = f"{equal} of {compared.samples} completions equal the merged weights'"
    log.info("export: gguf %s: %s (log-probabilities within %.2g)", name, same, compared.gap)
    problems = []
    if mismatched_prompts:
        problems.append(f"{name} tokenizes {mismatched_prompts} prompts differently from the processor")
    if not compared.fits(bound):
        required = f"at least {1 - bound.fraction:.1%} and log-probabilities within {bound.gap:g}"
        problems.append(f"{name}: {same}, within {compared.gap:.2g} ({required} are required)")
    return problems


def _save_lines(lines: Sequence[Mapping[str, object]], output: OutputFolder) -> None:
    file = output.target.with_name(f"{output.target.name}.comparison.jsonl")
    if file.exists() and not output.own:
        file.rename(free_name(file))
    file.unlink(missing_ok=True)
    for line in lines:
        append_line(file, line, private=True)


def _difference_error(folder: Path, problems: Sequence[str], lines: Sequence[Mapping[str, object]]) -> ModelError:
    shown = "\n".join(
        f"  {line['id']}: "
        + " | ".join(f"{name}: {text!r}" for name, text in line.items() if name not in ("id", "same"))
        for line in lines[:SHOWN]
    )
    return ModelError(
        "export.gguf_answers_differ",
        "a GGUF file must generate the same completions as its merged weights",
        place=folder,
        value="; ".join(problems),
        remedy=f"Remove the quantization from export.quant, or inspect the files, which are kept.\n{shown}",
    )
