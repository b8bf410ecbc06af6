"""The JSON files of COCO-VQA (Goyal et al. 2017, arXiv 1612.00837) and VQA-Med 2021: questions and annotations.

The source is the file of annotations if it has the questions too, or a folder with one file of each kind.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.formats.base import Format, Look, Reading
from toolkit.data.formats.readers import peek_text
from toolkit.data.formats.row_file import row_file
from toolkit.data.formats.zip_images import with_images_of
from toolkit.data.json_stream import Record, peek_members, stream_members
from toolkit.errors import DataError, RowProblem
from toolkit.identifiers import described, shown_numbers

_COCO_IMAGES = re.compile(r"(train|val|test)20\d\d")


def _elements(members: Mapping[str, Any], key: str, *columns: str) -> bool:
    """Return whether a member is a list whose first element has the columns."""
    value = members.get(key)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and set(columns) <= first.keys()


def _is_annotations(members: Mapping[str, Any]) -> bool:
    return _elements(members, "annotations", "question_id", "answers") or _elements(
        members, "annotations", "question_id", "multiple_choice_answer"
    )


def _is_questions(members: Mapping[str, Any]) -> bool:
    return _elements(members, "questions", "question_id", "question")


def _pair(look: Look) -> tuple[Path | None, Path | None]:
    """Return the files of questions and annotations. A file that exists twice is not certain, and there is no match."""
    files = [file for file in look.files if file.suffix.lower() == ".json"] if look.is_folder else [look.path]
    members = {file: _members(file) for file in files[:20]} if look.is_folder else {look.path: look.members}
    questions = [file for file, found in members.items() if _is_questions(found)]
    annotations = [file for file, found in members.items() if _is_annotations(found)]
    if look.container is not None and set(look.container.files) - {*questions, *annotations}:
        return None, None
    if len(questions) > 1 or len(annotations) > 1 or len(members) > len({*questions, *annotations}):
        return None, None
    return next(iter(questions), None), next(iter(annotations), None)


def _members(path: Path) -> dict[str, Any]:
    file = row_file(path)
    return {} if file is None else peek_members(peek_text(file))


def _files(look: Look) -> tuple[Path, ...]:
    return tuple(file for file in _pair(look) if file is not None)


def _records(reading: Reading) -> Iterator[Record]:
    questions_file, file = _pair(reading.look)
    if file is None:
        rule = "a file of questions must have the file of its annotations beside it, because it has no answers"
        remedy = "Name the folder that has both files, or the file of annotations."
        raise DataError("data.annotations_missing", rule, place=reading.look.path, remedy=remedy)
    questions = dict(_questions(questions_file, reading)) if questions_file else {}
    subtype = str(_members(file).get("data_subtype", ""))
    seen: set[str] = set()
    number = -1
    for key, one, text, _ in _elements_of(file):
        if key != "annotations":
            continue
        number += 1
        reading.move(f"annotations[{number}]")
        name = str(one.get("question_id")) if isinstance(one, dict) else ""
        seen.add(name)
        if reading.has_repeated_key(reading.at, one, text):
            continue
        try:
            yield name, _row(name, _joined(questions.get(name, {}), one), subtype, reading), None
        except RowProblem as problem:
            reading.skip(problem, reading.at)
    for number, name in enumerate(questions):
        if name not in seen:
            place = f"questions[{number}]"
            reading.skipped.add("a question must have an annotation", place, "data.question_without_annotation")


def _joined(question: Mapping[str, Any], annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question with its annotation.

    Raises:
        RowProblem: They have different images or texts, so that they do not belong together.
    """
    for key in ("image_id", "question"):
        values = [one[key] for one in (question, annotation) if key in one]
        if len({str(value) for value in values}) > 1:
            rule, remedy = f"a question and its annotation must have the same {key}", "Name the files of one dataset."
            raise RowProblem("data.annotation_of_another_question", rule, value=shown_numbers(values), remedy=remedy)
    return {**question, **annotation}


def _elements_of(path: Path) -> Iterator[tuple[str, Any, str, bool]]:
    file = row_file(path)
    if file is not None:
        with file.open() as stream:
            yield from stream_members(stream, file.place)


def _questions(path: Path, reading: Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    number = -1
    for key, one, text, _ in _elements_of(path):
        number += key == "questions"
        if key == "questions" and isinstance(one, dict):
            name = str(one.get("question_id"))
            if not reading.has_repeated_key(f"questions[{number}]", one, text):
                yield name, one


def _row(name: str, one: Mapping[str, Any], subtype: str, reading: Reading) -> dict[str, Any]:
    if not isinstance(one.get("question"), str):
        rule, remedy = "an annotation must have its question", "Name the folder that also has the file of questions."
        raise RowProblem("data.question_missing", rule, remedy=remedy)
    found = _answers(one)
    answer, alternatives = _chosen(one, found, reading)
    image = one.get("image_id", name)
    if isinstance(image, int) and _COCO_IMAGES.fullmatch(subtype):
        image = f"COCO_{subtype}_{image:012d}.jpg"
    dropped = ("answers", "multiple_choice_answer", "question_id", "image_id")
    row = {key: value for key, value in one.items() if key not in dropped}
    row |= {"id": name, "image": str(image), "answer": answer}
    return row | ({"alternatives": alternatives} if alternatives else {})


def _answers(one: Mapping[str, Any]) -> list[str]:
    found = one.get("answers") or []
    values = [answer.get("answer") if isinstance(answer, dict) else answer for answer in found]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        rule, remedy = "answers must be a list of texts", "Correct the answers."
        raise RowProblem("data.answers_not_text", rule, value=described(found), remedy=remedy)
    return texts


def _chosen(one: Mapping[str, Any], found: list[str], reading: Reading) -> tuple[str, list[str]]:
    """Return the answer and the other correct answers.

    Repeated answers are the votes of annotators, of which the most frequent one is correct. Different answers are all
    correct, as in VQA-Med.
    """
    votes = Counter(found)
    choice = one.get("multiple_choice_answer")
    if choice not in (None, *votes) and votes:
        rule = "multiple_choice_answer is not one of the answers, and the answers are used"
        reading.notes.add(rule, reading.at, "data.choice_not_an_answer", choice)
    if not votes or (len(found) > len(votes) and choice in votes):
        if not isinstance(choice, str):
            rule, remedy = "an annotation must have an answer", "Add the answer, or remove the annotation."
            raise RowProblem("data.answer_missing", rule, value=choice, remedy=remedy)
        return choice, []
    if len(found) > len(votes):
        (first, most), *rest = votes.most_common(2)
        if rest and rest[0][1] == most:
            rule, remedy = "one answer must have the most votes", "Add multiple_choice_answer."
            raise RowProblem("data.votes_tied", rule, value=found, remedy=remedy)
        return first, []
    answer = choice if isinstance(choice, str) and choice in votes else found[0]
    return answer, [text for text in found if text != answer]


VQA_JSON = Format(
    name="COCO-VQA questions and annotations",
    description="a JSON file with annotations (question_id, question, answers), or a folder with it and the questions",
    matches=lambda look: any(_pair(look)),
    records=lambda reading: with_images_of(reading.look.path, _records(reading), reading.images),
    files=_files,
    splits=lambda _: (),
)
