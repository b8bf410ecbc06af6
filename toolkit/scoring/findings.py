"""Findings in a chest radiology report: CheXpert's 14 observations, each present, absent or uncertain.

The rules follow the CheXpert labeler (Irvin et al. 2019, arXiv 1901.07031) and NegEx (Chapman et al. 2001,
doi:10.1006/jbin.2001.1029): phrases mention an observation, and words around a mention negate it or make it uncertain.
They differ from CheXpert as follows.

- The scope of a negation is found from words and punctuation, not from a dependency parse.
- The heart and the mediastinum count as enlarged only if the sentence says so. CheXpert counts every mention that is
  not negated.
- A text without any finding is ``No Finding`` only if it says something about findings, such as "the lungs are clear".

The rules read English text only. They know no history ("resolved since the prior") beyond the words in the tables, and
no relation between sentences.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
NO_FINDING, SUPPORT_DEVICES = "No Finding", "Support Devices"

MENTIONS: Mapping[str, str] = {
    "Enlarged Cardiomediastinum": r"(?:cardio)?mediastin(?:um|al)(?! (?:lymph|shift|mass|drain))",
    "Cardiomegaly": r"cardiomegaly|cardiac (?:enlargement|size|shadow|contours?|silhouette)|heart(?! failure)",
    "Lung Opacity": r"(?<!nodular )opaci\w+|air[- ]?space diseases?|infiltrat\w+|interstitial (?:markings?|patterns?)"
    r"|reticula\w+|(?:peri)?bronchial (?:wall )?thickening|scar(?:s|ring)?\b",
    "Lung Lesion": r"mass(?:es)?(?! effect)\b|nodules?|nodular (?:densit|opaci)\w+|(?:lung|pulmonary|cavitary) lesions?"
    r"|carcinomas?|neoplasms?|tumou?rs?|metastas[ei]s|granulomas?",
    "Edema": r"o?edema|heart failure|chf|(?:vascular|pulmonary) (?:venous )?congestion",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"(?:broncho)?pneumonias?|infect\w+",
    "Atelectasis": r"atelecta\w+|(?:lung|lobe|lobar) collapse",
    "Pneumothorax": r"(?:hydro)?pneumothora(?:x|ces)",
    "Pleural Effusion": r"(?<!pericardial )effusions?|pleural fluid|hydro(?:pneumo)?thorax",
    "Pleural Other": r"pleural (?:thickening|plaques?|scar\w*)|fibrothorax|pleuro-?parenchymal scar\w*",
    "Fracture": r"fractur\w+",
    SUPPORT_DEVICES: r"pacemakers?|pacer|picc|(?:tracheostomy|endotracheal|enteric|nasogastric|feeding|chest) tubes?"
    r"|(?:et|ng) tubes?|(?:central|dialysis|jugular|subclavian) (?:venous )?(?:line|catheter)s?|catheters?"
    r"|defibrillators?|icd|stents?"
    r"|valve (?:replacement|prosthes[ei]s)|prosthetic valves?|sternotomy wires|port-?a-?cath|cannula\w*"
    r"|(?:surgical|orthopa?edic) hardware|metal device",
}
"""Observation -> pattern of the phrases that mention it. The phrases are those of CheXpert's labeler, shortened."""

ORGANS = frozenset({"Enlarged Cardiomediastinum", "Cardiomegaly"})
"""Observations whose phrases also name a normal organ."""

_NEGATING = (
    r"\b(?:no|not|nor|without|neither|never|denies|absence of|free of|clear of|negative for|rather than"
    r"|(?:interval )?(?:resolution|clearing|removal|drainage) of|rules? out|ruled out|exclud(?:es?|ed|ing))\b"
    r"|(?<!not )(?<!partially )(?<!incompletely )\bresolved (?:\w+ ){0,2}$"
)
_NOT_NEGATING = (
    r"\bno (?:(?:significant|interval|appreciable|substantial|definite) )*(?:change|increase|decrease|improvement)s?\b"
    r"|\bnot only\b|\bnot significantly changed\b|\bcannot (?:be )?(?:rule|exclude)\w*(?: out)?|\bnot (?:be )?excluded"
    r"|\bnot (?:be )?ruled out"
)
"""Pseudo-negations of NegEx, and negations of an exclusion."""
_NEGATED_AFTER = (
    r"\b(?:is|are|was|were|has|have|had|been|be)?\s*(?:not|no longer) (?:\w+ ){0,2}(?:seen|present|identified|evident"
    r"|visuali[sz]ed|noted|appreciated|detected|demonstrated|enlarged|widened|shown)\b"
    r"|\b(?:has|have|had|is|are)? ?(?:since |now |completely )*(?:resolved|cleared|absent|removed|unlikely)\b"
    r"|\bruled out\b|\b(?:is|are) excluded\b"
)
_FIELD = r"(?:\s\w+)?\s*(?:\([^)]*\)\s*)?"
_DENIED_FIELD = (
    rf"{_FIELD}(?::\s*(?:no\b(?! change)|none|nil\b|absent|negative"
    r"|not (?:seen|present|identified|evident|visuali[sz]ed))"
    r"|\s[-–=]\s*(?:none|no|nil|absent|negative)\s*(?:$|[,;]))"
)
"""A field of a structured report and its value, such as "Pleural effusion: none"."""
_NORMAL = (
    r"\b(?:normal|unremarkable|(?:not|without) (?:\w+ )?(?:enlarge\w*|widened)|(?:within|upper) (?:normal )?limits)\b"
)
_ENLARGED = r"\b(?:enlarge\w*|cardiomegaly|wid(?:e|en\w*)|prominen\w+|increased)\b"
_UNSURE_BEFORE = (
    r"\b(?:possibl[ey]|probabl[ey]|likely|suspected|suspicious for|suspicion (?:of|for)|concern(?:ing)? for|may|might"
    r"|could|can (?:be|represent|reflect)|suggest\w*|perhaps|presumed|questionable|question of|differential|versus|vs"
    r"|cannot (?:be )?(?:rule|exclude)\w*(?: out)?|difficult to exclude|rule out|evaluate for)\b"
)
_UNSURE_AFTER = (
    r"\b(?:(?:cannot|not) (?:be )?(?:\w+ )?(?:excluded|ruled out)|(?:is|are) (?:possible|suspected|questionable|likely)"
    r"|(?:may|might|could) be (?:present|considered)|versus|vs)\b|\?"
    r"|^\s*(?:possible|probable|questionable|suspected|likely|equivocal)\b"
)
_ENDS_SCOPE = (
    r"\b(?:but|however|although|though|except|apart from|aside from|other than|with the exception of|which|yet|whereas"
    r"|while|and (?:a|an|the|there)|there (?:is|are)|secondary to|due to)\b|:|, with\b"
)
_FINITE = r"\b(?:is|are|was|were|has|have|remains?|persists?|shows?|demonstrates?)\b"
_NORMAL_STATEMENT = (
    r"\blungs?:? (?:are |is |fields are |fields )?(?:\w+ )?clear\b|\bclear (?:bilateral )?lungs?\b"
    r"|\bno (?:radiographic )?(?:evidence of )?(?:active|acute|significant)[\w ,/-]*?"
    r"(?:process|abnormalit(?:y|ies)|findings?|diseases?)\b"
    r"|\b(?:normal|unremarkable) (?:chest|study|exam\w*|radiographs?|x-?rays?)\b"
    r"|\b(?:chest|study|exam\w*|radiographs?|x-?rays?) (?:is |are )?(?:normal|unremarkable)\b"
)
# A heading or a line with a capital letter, digit or bullet begins a sentence. Other line breaks are wrapped lines.
_SENTENCE = re.compile(r"(?<=[\w)\]%])[.!;](?=\s|$)|\n(?=\s*(?:[A-Z0-9•*-]|\n|$))")
_RANK = {PRESENT: 2, UNCERTAIN: 1, ABSENT: 0}


@lru_cache(maxsize=1 << 12)
def find_findings(report: str) -> Mapping[str, str]:
    """Return observation -> ``present``, ``uncertain`` or ``absent``, for the observations that a report mentions.

    Of several mentions, present wins over uncertain, and uncertain over absent. ``No Finding`` is present if the report
    has a statement about findings and none of them, apart from support devices, is present or uncertain.

    >>> find_findings("Small left effusion. No pneumothorax. Possible pneumonia.")
    {'Pneumonia': 'uncertain', 'Pneumothorax': 'absent', 'Pleural Effusion': 'present'}
    >>> find_findings("The lungs are clear. Pacemaker in place.")
    {'Support Devices': 'present', 'No Finding': 'present'}

    The result is cached and must not be modified.
    """
    found: dict[str, str] = {}
    for sentence in _SENTENCE.split(report):
        for name, status in _mentions(" ".join(sentence.lower().split())):
            if name not in found or _RANK[status] > _RANK[found[name]]:
                found[name] = status
    ordered = {name: found[name] for name in MENTIONS if name in found}
    stated = bool(set(found) - {SUPPORT_DEVICES}) or re.search(_NORMAL_STATEMENT, report.lower())
    if stated and not any(status != ABSENT for name, status in ordered.items() if name != SUPPORT_DEVICES):
        ordered[NO_FINDING] = PRESENT
    return ordered


def positive_findings(report: str) -> frozenset[str]:
    """Return the observations that a report says are present or uncertain, with ``No Finding``.

    Uncertain counts as positive, as in the F1 of CheXbert (Smit et al. 2020, arXiv 2004.09167) for generated reports.
    """
    return frozenset(name for name, status in find_findings(report).items() if status != ABSENT)


def finding_f1(prediction: str, reference: str) -> float | None:
    """Return the F1 of the positive observations of two reports, in [0, 1].

    None if the reference mentions no observation, as in a report of another organ. A prediction without a statement
    about findings scores 0.

    >>> finding_f1("Cardiomegaly. No effusion.", "Enlarged heart with left pleural effusion.")  # 1 of 1 and 2
    0.6666666666666666
    >>> finding_f1("No pneumothorax.", "Left pneumothorax."), finding_f1("", "Lungs are clear.")
    (0.0, 0.0)
    """
    expected, predicted = positive_findings(reference), positive_findings(prediction)
    if not find_findings(reference):
        return None
    if not expected:  # the reference only says that there is no device
        return float(bool(find_findings(prediction)) and not predicted)
    return 2 * len(expected & predicted) / (len(expected) + len(predicted))


def _mentions(sentence: str) -> Iterator[tuple[str, str]]:
    for name, pattern in MENTIONS.items():
        for found in re.finditer(rf"\b(?:{pattern})", sentence):
            if status := _status(name, sentence, found.start(), found.end()):
                yield name, status


def _status(name: str, sentence: str, start: int, end: int) -> str | None:
    """Return the status of one mention, or None if it says nothing about the observation."""
    if re.match(_DENIED_FIELD, sentence[end:]):
        return ABSENT
    # The value of a field such as "Heart size: enlarged" belongs to the mention.
    after = re.split(_ENDS_SCOPE, re.sub(rf"^{_FIELD}:", " ", sentence[end:]), maxsplit=1)[0]
    before = _before(sentence[:start], _clause(after))
    if name in ORGANS and "cardiomegaly" not in sentence[start:end] and "enlargement" not in sentence[start:end]:
        around = f"{before} {sentence[start:end]} {after}"
        if re.search(_NORMAL, around):
            return ABSENT
        if not re.search(_ENLARGED, around):
            return None
    if re.search(_NEGATED_AFTER, re.sub(_NOT_NEGATING, " ", _clause(after))):
        return ABSENT
    if re.search(_NEGATING, re.sub(_NOT_NEGATING, " ", before)):
        return ABSENT
    if re.search(_UNSURE_BEFORE, before) or re.search(_UNSURE_AFTER, _clause(after)):
        return UNCERTAIN
    return PRESENT


def _before(text: str, after: str) -> str:
    """Return the text before a mention that is in its scope. ``after`` is the rest of its clause."""
    text = re.split(_ENDS_SCOPE, text)[-1]
    # "No pneumothorax, left opacity is" begins another clause. "No pneumothorax, effusion or" continues the list.
    *clauses, last = text.split(",")
    if clauses and re.search(_FINITE, clause := last + after) and not re.search(r"\b(?:or|nor)\b", clause):
        return last
    return text


def _clause(text: str) -> str:
    """Return the text after a mention up to the next comma that is not part of a list with "or"."""
    clause, comma, rest = text.partition(",")
    return f"{clause} {rest}" if comma and re.match(r"\s*(?:[\w -]+, )*(?:or|nor)\b", rest) else clause
