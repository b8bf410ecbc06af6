"""Pure scores of one text against another: words, overlap, exact match.

The words are those of SQuAD's scorer (Rajpurkar et al. 2016, arXiv 1606.05250: lower case, no punctuation, no
articles), with the changes that radiology needs: a decimal point stays ("3.4 cm" is not "34 cm"), a hyphen separates
("T2-weighted" is "T2 weighted"), a unit leaves its number ("5cm" is "5 cm"), "x-ray", "x ray" and "Xray" are one word,
number words up to twelve are digits, and negation is never lost ("isn't" is "is not", "w/o" is "without").
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
"""Function words. Words of place, number and negation are not among them: they change what a finding is."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """The words of a prediction and a reference, each word as often as it stands there, in the order of the text."""

    shared: tuple[str, ...]
    missed: tuple[str, ...]
    """Words of the reference that the prediction lacks."""
    extra: tuple[str, ...]
    """Words of the prediction that the reference lacks."""

    @property
    def precision(self) -> float:
        """Fraction of the prediction's words that the reference has, 0 to 1."""
        return _proportion(len(self.shared), len(self.extra))

    @property
    def recall(self) -> float:
        """Fraction of the reference's words that the prediction has, 0 to 1."""
        return _proportion(len(self.shared), len(self.missed))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1; 1 if both texts are without a word."""
        words = 2 * len(self.shared) + len(self.missed) + len(self.extra)
        return 2 * len(self.shared) / words if words else 1.0


def tokens(text: str) -> list[str]:
    """Return the words of a text, in order, as this module compares them.

    A text of nothing but articles keeps them, so that the answer "A" is not the answer "".

    >>> tokens("The T2-weighted MRI shows a 3.40cm lesion, isn't it?")
    ['t2', 'weighted', 'mri', 'shows', '3.4', 'cm', 'lesion', 'is', 'not', 'it']
    """
    plain = unicodedata.normalize("NFKC", text).lower().translate(_SIGNS)
    for pattern, replacement in _REWRITES:
        plain = pattern.sub(replacement, plain)
    words = [_NUMBERS.get(word, word) for word in _WORD.findall(plain)]
    return [word for word in words if word not in ARTICLES] or words


def normalise(text: str) -> str:
    """Return the words of a text with one blank between them.

    >>> normalise("Chest X-ray, w/o contrast.")
    'chest xray without contrast'
    """
    return " ".join(tokens(text))


def label_text(text: str) -> str:
    """Return a button's or field's label as labels are compared: case, blanks and punctuation do not count.

    Signs that tell two labels apart stay ("Zoom +", "L/R"), and so does a text of nothing but punctuation.

    >>> label_text(" Load-Volume. "), label_text("Zoom +"), label_text("3.5 mm"), label_text("…")
    ('load volume', 'zoom +', '3.5 mm', '…')
    """
    plain = unicodedata.normalize("NFC", text).casefold()
    words = _PUNCTUATION.sub(" ", plain).split()
    return " ".join(words or plain.split())


def content_words(text: str) -> list[str]:
    """Return the words of a text, in order, without function words. Negations stay.

    >>> content_words("There is no effusion in the left lung.")
    ['no', 'effusion', 'left', 'lung']
    """
    return [word for word in tokens(text) if word not in STOP_WORDS]


def exact_match(prediction: str, reference: str) -> bool:
    """Return whether both texts have the same words in the same order (two texts without a word match)."""
    return tokens(prediction) == tokens(reference)


def overlap(prediction: str, reference: str) -> Overlap:
    """Return which words two texts share, with multiplicity."""
    predicted, expected = tokens(prediction), tokens(reference)
    common = Counter(predicted) & Counter(expected)
    shared, missed = _take(expected, common)
    _, extra = _take(predicted, common)
    return Overlap(shared, missed, extra)


def token_f1(prediction: str, reference: str) -> float:
    """Return SQuAD's token F1 of two texts, 0 to 1: word order does not count, multiplicity does.

    Two texts without a word score 1. One of them without a word scores 0 (SQuAD 2.0, arXiv 1806.03822).

    >>> token_f1("right lower lobe opacity", "opacity in the right lower lobe")  # 4 shared of 4 and 5: 2 * 4 / 9
    0.8888888888888888
    """
    return overlap(prediction, reference).f1


def _take(words: Sequence[str], wanted: Counter[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits words into those that ``wanted`` has left and the others."""
    left, taken, others = Counter(wanted), [], []
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
# Not between two digits, where it is a decimal's or a thousand's. A hyphen or underscore only within a word.
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
