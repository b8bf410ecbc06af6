"""The form GGUF: converted from the merged weights, quantised, read back, and asked by llama.cpp."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ModelError
from toolkit.exporting.atomic_output import Place, free_name
from toolkit.exporting.extra_files import put_beside
from toolkit.exporting.formats import Job, megabytes
from toolkit.exporting.verification import BOUNDS, Asked, ask, compare, primary_score, side_by_side
from toolkit.models.llamacpp import CONVERTED, KINDS, Child, Expected, check_metadata, require_for
from toolkit.models.llamacpp.convert import convert
from toolkit.recipe import Export
from toolkit.runfolder import Record, append_line

log = logging.getLogger(__name__)

SHOWN = 3
"""Answers that a failed proof shows."""


def export_gguf(job: Job, merged: Path, place: Place) -> Record:
    """Write text models and projector to their place, and prove each quantisation against the merged weights.

    The answers stand side by side in ``gguf.comparison.jsonl`` beside the folder.

    Raises:
        MissingExtraError: the converter or llama.cpp is not installed.
        Interrupted: a signal came; nothing has the final name that had it not before.
        ModelError: the weights cannot be converted, a file does not say what it must, or a quantisation answers
            otherwise more often than it may; the files stay in ``gguf.differs`` then.
    """
    section = job.recipe.export or Export()
    quant = tuple(dict.fromkeys(section.quant))
    require_for(quant, verify=bool(job.questions.rows))
    place.partial.mkdir(parents=True)
    pair = _write(job, merged, place.partial, quant)
    expected = _expected(job, merged)
    about = {kind: check_metadata(file, pair.mmproj, kind, expected) for kind, file in pair.models.items()}
    files: dict[str, Record] = {
        kind: {"file": file.name, "megabytes": megabytes(file), "bits": KINDS[kind].bits}
        for kind, file in pair.models.items()
    }
    record: Record = {"bits": 16, "questions": 0, "differing": 0, "files": files, "metadata": about[quant[0]]}
    if job.questions.rows:
        record |= _prove(job, merged, pair, place, files)
    record |= put_beside(place.partial, job.facts("gguf", record))
    place.put()
    target = place.target
    mmproj = target / pair.mmproj.name
    return record | {"mmproj": mmproj.name, "mmproj_megabytes": megabytes(mmproj), "megabytes": megabytes(target)}


@dataclass(frozen=True, slots=True)
class _Pair:
    models: Mapping[str, Path]
    """Kind -> text model."""
    mmproj: Path


def _write(job: Job, merged: Path, folder: Path, quant: Sequence[str]) -> _Pair:
    """Convert once a converted kind, and quantise the others from f16, which stays only if it is asked for."""
    name = job.recipe.run.name
    models = {kind: folder / f"{name}-{KINDS[kind].label}.gguf" for kind in KINDS}
    mmproj = folder / f"mmproj-{name}-f16.gguf"
    coarse = [kind for kind in quant if kind not in CONVERTED]
    for kind in CONVERTED:
        if kind in quant or (kind == "f16" and coarse):
            convert(merged, models[kind], mmproj, kind, name=name)
    if coarse:
        with Child() as child:
            for kind in coarse:
                child.quantise(models["f16"], models[kind], kind)
    if "f16" not in quant:
        models["f16"].unlink(missing_ok=True)
    return _Pair({kind: models[kind] for kind in quant}, mmproj)


def _expected(job: Job, merged: Path) -> Expected:
    """What the files must say, by the merged weights' own files."""
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


def _prove(job: Job, merged: Path, pair: _Pair, place: Place, files: Mapping[str, Record]) -> Record:
    """Ask the merged weights and then each quantisation; its figures go into ``files``."""
    from toolkit.models.gguf import GgufBackend

    policy = job.backend.load(job.recipe, merged, trainable=False, mergeable=True)
    before = ask(job.backend, policy, job.questions)
    del policy
    after: dict[str, Asked] = {}
    problems: list[str] = []
    for kind, file in pair.models.items():
        job.check(f"gguf {kind} was not asked yet")
        backend = GgufBackend()
        child = backend.load(job.recipe, file, trainable=False)
        after[kind] = ask(backend, child, job.questions, before.texts)
        child.model.close()
        compared = compare(before, after[kind])
        files[kind].update(compared.to_record() | {"score": primary_score(job.questions, after[kind].answers)})
        problems += _problems(kind, files[kind], backend.mismatched_prompts, compared.fits(BOUNDS[kind]))
    lines = side_by_side(job.questions, before, after)
    _keep(lines, place)
    if problems:
        place.partial.replace(place.differs)
        raise _differs(place, problems, [line for line in lines if not line["same"]])
    worst = max(files.values(), key=lambda found: int(found["differing"]))
    return {"questions": worst["questions"], "differing": worst["differing"], "held_out": job.questions.held_out}


def _problems(kind: str, found: Record, mismatched_prompts: int, fits: bool) -> list[str]:
    same = f"{found['questions'] - found['differing']} of {found['questions']} answers as the merged weights"
    log.info("export: gguf %s gives %s (log-probabilities within %.2g)", kind, same, found["gap"])
    problems = []
    if mismatched_prompts:
        problems.append(f"{kind} tokenizes {mismatched_prompts} prompts differently from the processor")
    if not fits:
        share = f"at least {1 - BOUNDS[kind].share:.1%} and log-probabilities within {BOUNDS[kind].gap:g}"
        problems.append(f"{kind} gives {same}, within {found['gap']:.2g} ({share} are required)")
    return problems


def _keep(lines: Sequence[Record], place: Place) -> None:
    file = place.target.with_name(f"{place.target.name}.comparison.jsonl")
    if file.exists() and not place.own:
        file.rename(free_name(file))
    file.unlink(missing_ok=True)
    for line in lines:
        append_line(file, line)


def _differs(place: Place, problems: Sequence[str], lines: Sequence[Record]) -> ModelError:
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
        remedy=f"Remove the quantisation from export.quant, or inspect the files, which are kept.\n{shown}",
    )
