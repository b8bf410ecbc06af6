"""Pure scores of one text against another: tokens, overlap and exact match.

Tokens follow the scorer of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no articles.
Radiology needs these changes:

- A decimal point stays ("3.4 cm" is not "34 cm"), and a unit is separated from its number ("5cm" is "5 cm").
- A hyphen separates words ("T2-weighted" is "T2 weighted"). "x-ray", "x ray" and "Xray" are one word.
- Number words up to twelve become digits.
- Negation is never lost ("isn't" is "is not", "w/o" is "without").
- The sign of a status is a word ("ER+" is "ER positive", "3+" is "3 plus"), and "T2*" is not "T2".

Other languages need these changes. Of English texts, they change only those with a decimal comma or a power:

- Case is folded as Unicode defines it ("ß" is "ss"). Turkish "İ", "I" and "ı" are all "i", because a capital can be
  that of either.
- Each character of a script without blanks between words is a token: Chinese characters, kana, Thai, Lao, Khmer and
  Burmese. Korean has blanks, so its tokens are words with their particles.
- A mark stays in its word, such as a vowel sign of Hindi. The vowel points of Arabic are optional and left out.
- Digits and decimal signs of every script are those of ASCII. A raised digit after a digit is a power ("10²" is
  "10^2").
- The letters yeh and kaf of Arabic and Persian keyboards are the same.
- A decimal comma before a unit is a point ("3,4 cm" is "3.4 cm", and "1.234,5" is "1234.5"). A comma before exactly
  three digits separates thousands ("1,234 mm" is "1234 mm"). Without a unit, "3,4" remains a list of 3 and 4.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

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
    >>> tokens("右肺 3,4 cm")
    ['右', '肺', '3.4', 'cm']
    """
    is_ascii = text.isascii()
    plain = (text.lower() if is_ascii else _fold(text)).translate(_SIGNS)
    if "," in plain:
        plain = _DECIMAL_COMMA.sub(lambda number: f"{number[1].replace('.', '')}.{number[2]}", plain)
    for pattern, replacement in _REWRITES:
        plain = pattern.sub(replacement, plain)
    found: list[str] = _WORD.findall(plain) if is_ascii else _WORD_OF_ANY_SCRIPT.findall(plain)
    words = [_NUMBERS.get(word, word) for word in found]
    return [word for word in words if word not in ARTICLES] or words


def word_count(text: str) -> int:
    """Return the number of tokens, with two characters of a script without blanks as one word, as in most of Chinese.

    >>> word_count("right lower lobe"), word_count("右肺下叶")
    (3, 2)
    """
    found = tokens(text)
    characters = sum(_UNSPACED.fullmatch(token) is not None for token in found if not token.isascii())
    return len(found) - characters + (characters + 1) // 2


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
    plain = fold_case(unicodedata.normalize("NFC", text))
    words = _PUNCTUATION.sub(" ", plain).split()
    return " ".join(words or plain.split())


def fold_case(text: str) -> str:
    """Return a text without differences of case, and with one "i" for the two of Turkish.

    >>> fold_case("STRASSE Straße"), fold_case("İnfarkt ISI")
    ('strasse strasse', 'infarkt isi')
    """
    # Folding "İ" leaves "i" and a combining dot.
    return text.lower() if text.isascii() else text.casefold().replace("i\u0307", "i").replace("ı", "i")


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


def _fold(text: str) -> str:
    """Return a text that is not ASCII without differences of case, width and digits, and characters as words."""
    plain = _POWER.sub(r"^\g<0>", _FULL_WIDTH_COMMA.sub(", ", text))
    plain = unicodedata.normalize("NFKC", fold_case(unicodedata.normalize("NFKC", plain)))
    plain = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0], digit[0])), plain.translate(_NUMBER_SIGNS))
    spaced: str = _UNSPACED.sub(r" \g<0> ", plain)
    return spaced


def _proportion(shared: int, others: int) -> float:
    return shared / (shared + others) if shared + others else 1.0


_SIGNS = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'", "−": "-", "%": " percent "})
# A point or comma between digits belongs to the number. A hyphen or underscore separates only inside a word.
_PUNCTUATION = re.compile(r"""["'’‘“”`´!?;:()\[\]{}…]|(?<!\d)[.,]|[.,](?!\d)|(?<=\w)-(?=\w)|_""")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_UNITS = "mm|cm|m|ml|cc|l|mg|g|kg|kv|kvp|hu|t|gy|hz|mhz|s|min|h"
_FOREIGN_UNITS = "uh|he|ms|µm|μm|nm|mmhg|bpm|lpm|мм|см|м|мл|л|мг|г|кг|сек|мин"
_UNIT_WORDS = r"(?:milli|milí|mili|centi|centí|zenti|санти|милли)\w*"
_MEASURED = rf"\s*(?:(?:{_UNITS}|percent|{_FOREIGN_UNITS}|{_UNIT_WORDS})\b|°|毫\s*米|厘\s*米|公\s*分|毫\s*升)"
# "3,4 cm", "3,4 x 2,1 cm", "1.234,5 mm". In "L3,4 cm" and "1,2,3 cm" the comma separates.
_DECIMAL_COMMA = re.compile(
    r"(?:(?<![\w.,])|(?<=\d[x×]))(\d{1,3}(?:\.\d{3})+|\d+),(?!\d{3}(?!\d))(\d+)(?!\d)"
    rf"(?=(?:\s*[x×–-]\s*\d+(?:[.,]\d+)?)*{_MEASURED})"
)
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
        (r"([^\W\d_]\d{0,4})\+(?![\w+])", r"\1 positive"),
        (r"([^\W\d_]\d{0,4})-(?=\s*(?:[,;/)]|\.?\s*\Z))", r"\1 negative"),
        (r"(?<=[\w+])\+(?!\w)|\A\s*\+(?=\s*\Z)|\A\s*\+(?=\+*\s*\Z)", " plus "),
        (r"\A\s*-\s*\Z", "minus"),
        (r"\bt2(?:\*|[\s-]star\b)", "t2star"),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<![\w.])\.(?=\d)", "0."),
        (r"(?<=\d)\s*[x×]\s*(?=\d)", " x "),
        (rf"(?<=\d)(?=(?:{_UNITS})\b)", " "),
        (r"(\d\.\d*?)0+(?!\d)", r"\1"),
    )
)
# Characters of scripts without blanks between words, each with its marks.
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー--[^\p{L}\p{N}]]\p{M}*",
    regex.VERSION1,
)
_FULL_WIDTH_COMMA = re.compile(r"(?<!\d)，|，(?!\d{3}(?!\d))")
_FOREIGN_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.VERSION1)
_OPTIONAL = "".join(map(chr, (*range(0x064B, 0x0653), 0x0670, 0x0640, 0x00AD, 0x200C, 0x200D)))
"""Vowel points of Arabic, the line that stretches its words, and signs without width that divide or join letters."""
_NUMBER_SIGNS = str.maketrans({"٫": ".", "٬": None, **dict.fromkeys(_OPTIONAL), "ی": "ي", "ک": "ك"})
"""Arabic decimal and thousands separators, and letters that Arabic and Persian keyboards write in two ways."""
_POWER = re.compile(r"(?<=\d)[⁰¹²³⁴⁵⁶⁷⁸⁹]")
# A comparison sign before a number, a number with its sign and decimals, or a word.
_WORD = re.compile(r"[<>≤≥±](?=\s*-?\d)|(?:(?<![^\s(])-)?\d+(?:\.\d+)?(?![^\W_]|\.\d)|[^\W_]+")
# Likewise, with the marks of a word.
_WORD_OF_ANY_SCRIPT = regex.compile(
    r"[<>≤≥±](?=\s*-?\d)|(?:(?<![^\s(])-)?\d+(?:\.\d+)?(?![\p{L}\p{N}]|\.\d)|[\p{L}\p{N}][\p{L}\p{N}\p{M}]*"
)
