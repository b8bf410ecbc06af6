"""Export GGUF: convert the merged weights, quantize them, check the metadata, and verify them with llama.cpp."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.exporting.atomic_output import OutputFolder, free_name
from toolkit.exporting.extra_files import write_extra_files
from toolkit.exporting.formats import ExportJob, megabytes
from toolkit.exporting.verification import (
    BOUNDS,
    GreedyCompletions,
    compare,
    compare_lines,
    generate_completions,
    primary_score,
)
from toolkit.models.llamacpp import CONVERTED, Child, require_for
from toolkit.models.llamacpp.convert import convert
from toolkit.models.llamacpp.files import QUANTIZATIONS, Expected, check_metadata
from toolkit.recipe import Export
from toolkit.runfolder import Record, append_line

log = logging.getLogger(__name__)

SHOWN = 3
"""Completions in the error of a failed verification."""


def export_gguf(job: ExportJob, merged: Path, place: OutputFolder) -> Record:
    """Export language models and projector, and compare each quantization with the merged weights.

    All completions are in ``gguf.comparison.jsonl`` beside the folder.

    Args:
        job: the export.
        merged: the folder of the merged weights.
        place: the folder to write to.

    Raises:
        MissingExtraError: the converter or llama.cpp is not installed.
        Interrupted: after a signal. The final folder is unchanged.
        ModelError: the weights cannot be converted, the metadata is wrong, or too many completions of a quantization
            differ. The files then stay in ``gguf.differs``.
    """
    section = job.recipe.export or Export()
    quant = tuple(dict.fromkeys(section.quant))
    require_for(quant, verify=bool(job.questions.rows))
    place.partial.mkdir(parents=True)
    pair = _write(job, merged, place.partial, quant)
    expected = _expected(job, merged)
    about = {kind: check_metadata(file, pair.mmproj, kind, expected) for kind, file in pair.models.items()}
    files: dict[str, Record] = {
        kind: {"file": file.name, "megabytes": megabytes(file), "bits": QUANTIZATIONS[kind].bits}
        for kind, file in pair.models.items()
    }
    record: Record = {"bits": 16, "questions": 0, "differing": 0, "files": files, "metadata": about[quant[0]]}
    if job.questions.rows:
        record |= _verify(job, merged, pair, place, files)
    record |= write_extra_files(place.partial, job.facts("gguf", record))
    place.commit()
    target = place.target
    mmproj = target / pair.mmproj.name
    return record | {"mmproj": mmproj.name, "mmproj_megabytes": megabytes(mmproj), "megabytes": megabytes(target)}


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
    name = job.recipe.run.name
    models = {kind: folder / f"{name}-{QUANTIZATIONS[kind].label}.gguf" for kind in QUANTIZATIONS}
    mmproj = folder / f"mmproj-{name}-f16.gguf"
    coarse = [kind for kind in quant if kind not in CONVERTED]
    for kind in CONVERTED:
        if kind in quant or (kind == "f16" and coarse):
            convert(merged, models[kind], mmproj, kind, name=name)
    if coarse:
        with Child() as child:
            for kind in coarse:
                child.quantize(models["f16"], models[kind], kind)
    if "f16" not in quant:
        models["f16"].unlink(missing_ok=True)
    return _Files({kind: models[kind] for kind in quant}, mmproj)


def _expected(job: ExportJob, merged: Path) -> Expected:
    """Return the metadata that the files must have, from the files of the merged weights."""
    from transformers import AutoConfig, GenerationConfig

    from toolkit.models.chat_template import adds_bos, conversation, render_prompt

    policy = job.backend.load_without_model(job.recipe)
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


def _verify(job: ExportJob, merged: Path, pair: _Files, place: OutputFolder, files: Mapping[str, Record]) -> Record:
    """Verify each quantization against the merged weights, and add its figures to ``files``."""
    from toolkit.models.gguf import GgufBackend

    policy = job.backend.load(job.recipe, merged, trainable=False, mergeable=True)
    before = generate_completions(job.backend, policy, job.questions)
    del policy
    after: dict[str, GreedyCompletions] = {}
    problems: list[str] = []
    for kind, file in pair.models.items():
        job.check(f"gguf {kind} was not verified yet")
        backend = GgufBackend()
        child = backend.load(job.recipe, file, trainable=False)
        after[kind] = generate_completions(backend, child, job.questions, before.texts)
        child.model.close()
        compared = compare(before, after[kind])
        files[kind].update(compared.to_record() | {"score": primary_score(job.questions, after[kind].completions)})
        problems += _problems(kind, files[kind], backend.mismatched_prompts, compared.fits(BOUNDS[kind]))
    lines = compare_lines(job.questions, before, after)
    _save_lines(lines, place)
    if problems:
        place.partial.replace(place.differs)
        raise _difference_error(place, problems, [line for line in lines if not line["same"]])
    worst = max(files.values(), key=lambda found: int(found["differing"]))
    return {"questions": worst["questions"], "differing": worst["differing"], "held_out": job.questions.held_out}


def _problems(kind: str, found: Record, mismatched_prompts: int, fits: bool) -> list[str]:
    same = f"{found['questions'] - found['differing']} of {found['questions']} completions equal the merged weights'"
    log.info("export: gguf %s: %s (log-probabilities within %.2g)", kind, same, found["gap"])
    problems = []
    if mismatched_prompts:
        problems.append(f"{kind} tokenizes {mismatched_prompts} prompts differently from the processor")
    if not fits:
        required = f"at least {1 - BOUNDS[kind].fraction:.1%} and log-probabilities within {BOUNDS[kind].gap:g}"
        problems.append(f"{kind}: {same}, within {found['gap']:.2g} ({required} are required)")
    return problems


def _save_lines(lines: Sequence[Record], place: OutputFolder) -> None:
    file = place.target.with_name(f"{place.target.name}.comparison.jsonl")
    if file.exists() and not place.own:
        file.rename(free_name(file))
    file.unlink(missing_ok=True)
    for line in lines:
        append_line(file, line)


def _difference_error(place: OutputFolder, problems: Sequence[str], lines: Sequence[Record]) -> ModelError:
    shown = "\n".join(
        f"  {line['id']}: "
        + " | ".join(f"{name}: {text!r}" for name, text in line.items() if name not in ("id", "same"))
        for line in lines[:SHOWN]
    )
    return ModelError(
        "export.gguf_answers_differ",
        "a GGUF file must generate the same completions as its merged weights",
        place=place.differs,
        value="; ".join(problems),
        remedy=f"Remove the quantization from export.quant, or inspect the files, which are kept.\n{shown}",
    )
