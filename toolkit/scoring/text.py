"""Pure scores of one text against another: tokens, overlap and exact match.

Tokens follow the scorer of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no articles.
Radiology needs these changes:

- A decimal point stays ("3.4 cm" is not "34 cm"), and a unit is separated from its number ("5cm" is "5 cm").
- A hyphen separates words ("T2-weighted" is "T2 weighted"). "x-ray", "x ray" and "Xray" are one word.
- Number words up to twelve become digits.
- Negation is never lost ("isn't" is "is not", "w/o" is "without").
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ARTICLES = frozenset({"a", "an", "the"})
NEGATIONS = frozenset({"no", "not", "nor", "none", "neither", "never", "without"})
_FUNCTION_WORDS = """
am are as at be been being but by can could did do does for from had has have he her his how i if in into is it its may
might of on or and our she should so such than that their then there these they this those to was we were what when
where which who whom whose why will with would you your also
"""
STOP_WORDS = ARTICLES | frozenset(_FUNCTION_WORDS.split())
"""Function words. Words of location, number and negation are not included, because they change a finding."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Tokens of a prediction and a reference with their multiplicity, in the order of the text."""

    shared: tuple[str, ...]
    missed: tuple[str, ...]
    """Words of the reference that the prediction lacks."""
    extra: tuple[str, ...]
    """Words of the prediction that the reference lacks."""

    @property
    def precision(self) -> float:
        """Fraction of the prediction's tokens that are in the reference, in [0, 1]."""
        return _proportion(len(self.shared), len(self.extra))

    @property
    def recall(self) -> float:
        """Fraction of the reference's tokens that are in the prediction, in [0, 1]."""
        return _proportion(len(self.shared), len(self.missed))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]. It is 1 if both texts have no tokens."""
        words = 2 * len(self.shared) + len(self.missed) + len(self.extra)
        return 2 * len(self.shared) / words if words else 1.0


def tokens(text: str) -> list[str]:
    """Return the tokens of a text, in order.

    A text of articles alone keeps them, so that the answer "A" differs from "".

    >>> tokens("The T2-weighted MRI shows a 3.40cm lesion, isn't it?")
    ['t2', 'weighted', 'mri', 'shows', '3.4', 'cm', 'lesion', 'is', 'not', 'it']
    """
    plain = unicodedata.normalize("NFKC", text).lower().translate(_SIGNS)
    for pattern, replacement in _REWRITES:
        plain = pattern.sub(replacement, plain)
    words = [_NUMBERS.get(word, word) for word in _WORD.findall(plain)]
    return [word for word in words if word not in ARTICLES] or words


def normalise(text: str) -> str:
    """Return the tokens of a text, joined by spaces.

    >>> normalise("Chest X-ray, w/o contrast.")
    'chest xray without contrast'
    """
    return " ".join(tokens(text))


def label_text(text: str) -> str:
    """Return the label of a button or field without case, extra spaces and punctuation, for comparisons.

    Signs that distinguish labels stay ("Zoom +", "L/R"), and so does a text of punctuation alone.

    >>> label_text(" Load-Volume. "), label_text("Zoom +"), label_text("3.5 mm"), label_text("…")
    ('load volume', 'zoom +', '3.5 mm', '…')
    """
    plain = unicodedata.normalize("NFC", text).casefold()
    words = _PUNCTUATION.sub(" ", plain).split()
    return " ".join(words or plain.split())


def content_words(text: str) -> list[str]:
    """Return the tokens of a text without function words. Negations stay.

    >>> content_words("There is no effusion in the left lung.")
    ['no', 'effusion', 'left', 'lung']
    """
    return [word for word in tokens(text) if word not in STOP_WORDS]


def exact_match(prediction: str, reference: str) -> bool:
    """Return whether both texts have the same tokens in the same order. Two texts without tokens match."""
    return tokens(prediction) == tokens(reference)


def overlap(prediction: str, reference: str) -> Overlap:
    """Return the shared, missed and extra tokens of two texts, with multiplicity."""
    predicted, expected = tokens(prediction), tokens(reference)
    common = Counter(predicted) & Counter(expected)
    shared, missed = _take(expected, common)
    _, extra = _take(predicted, common)
    return Overlap(shared, missed, extra)


def token_f1(prediction: str, reference: str) -> float:
    """Return SQuAD's token F1 of two texts, in [0, 1]. It ignores order but not multiplicity.

    Two texts without tokens score 1. If only one text has tokens, the score is 0 (SQuAD 2.0, arXiv 1806.03822).

    >>> token_f1("right lower lobe opacity", "opacity in the right lower lobe")  # 4 shared of 4 and 5: 2 * 4 / 9
    0.8888888888888888
    """
    return overlap(prediction, reference).f1


def _take(words: Sequence[str], available: Counter[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split tokens into those that ``available`` still has and the others."""
    left, taken, others = Counter(available), [], []
    for word in words:
        if left[word] > 0:
            left[word] -= 1
            taken.append(word)
        else:
            others.append(word)
    return tuple(taken), tuple(others)


def _proportion(shared: int, others: int) -> float:
    return shared / (shared + others) if shared + others else 1.0


_SIGNS = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'", "−": "-", "%": " percent "})
# A point or comma between digits belongs to the number. A hyphen or underscore separates only inside a word.
_PUNCTUATION = re.compile(r"""["'’‘“”`´!?;:()\[\]{}…]|(?<!\d)[.,]|[.,](?!\d)|(?<=\w)-(?=\w)|_""")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_UNITS = "mm|cm|m|ml|cc|l|mg|g|kg|kv|kvp|hu|t|gy|hz|mhz|s|min|h"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\bw/o\b", "without"),
        (r"\bw/", "with "),
        (r"\bcan't\b|\bcannot\b", "can not"),
        (r"\bwon't\b", "will not"),
        (r"n't\b", " not"),
        (r"'s\b|'", ""),
        (r"\bx[\s-]?rays?\b", "xray"),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<![\w.])\.(?=\d)", "0."),
        (r"(?<=\d)\s*[x×]\s*(?=\d)", " x "),
        (rf"(?<=\d)(?=(?:{_UNITS})\b)", " "),
        (r"(\d\.\d*?)0+(?!\d)", r"\1"),
    )
)
# A comparison sign before a number, a number with its sign and decimals, or a word.
_WORD = re.compile(r"[<>≤≥](?=\s*-?\d)|(?:(?<![^\s(])-)?\d+(?:\.\d+)?(?![^\W_]|\.\d)|[^\W_]+")
