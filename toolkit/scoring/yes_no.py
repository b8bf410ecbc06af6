"""Yes and no in the languages of medical question sets, and the clear yes or no of a completion."""

import re
from collections.abc import Mapping
from typing import Literal

from toolkit.scoring.text import normalise

YesNo = Literal["yes", "no"]

_WORDS: Mapping[YesNo, str] = {
    "yes": """
        yes|sí|si|sì|sim|oui|ja|jawohl|jo|já|tak|ano|áno|da|да|так|evet|var|ya|ναι|igen|kyllä|jah|taip|jā|có|হ্যাঁ|हाँ|हां|
        ஆம்|نعم|بله|بلی|ہاں|כן|ใช่|มี|有|有的|是|是的|对|对的|存在|包含|包括|可以|能|はい|あり|ある|예|네|있다|있음|있습니다
    """,
    "no": """
        no|não|nao|non|nein|nee|nej|nei|nie|ne|нет|не|ні|hayır|yok|tidak|όχι|οχι|nem|ei|nē|nu|không|না|नहीं|
        இல்லை|لا|خیر|نہیں|לא|ไม่|ไม่ใช่|ไม่มี|没有|没|无|否|不是|不|不对|不存在|不包含|不包括|不可以|不能|いいえ|なし|ない|
        아니요|아니오|없다|없음|없습니다
    """,
}
_MEANING: Mapping[str, YesNo] = {
    normalise(word): meaning for meaning, words in _WORDS.items() for word in words.split("|")
}
# "non-contrast" and "no-one" have no "no".
_ENGLISH = re.compile(r"(?<![\w'-])(yes|no)(?![\w'-])", re.IGNORECASE)
# "No. 5 rib" is a number, not a "no".
_NUMBERED = re.compile(r"\bno\.\s*\d", re.IGNORECASE)
_AFTER = ".,;:!?…—([。，；：！？、（،؛؟।॥"
# A hyphen or dash follows after a blank only, as "non-contrast" has no "non". "да/нет" is neither of them.
_FIRST = re.compile(rf"\s*([^\s{re.escape(_AFTER)}]+)(?:\s*[{re.escape(_AFTER)}]|[ \t]*\n|\s+[-–]\s|\s*\Z)")


def yes_or_no(text: str) -> YesNo | None:
    """Return the meaning of a text that is only a yes or a no, in any language of the table. None for any other text.

    >>> yes_or_no("No."), yes_or_no("Sí"), yes_or_no("不是"), yes_or_no("no effusion")
    ('no', 'yes', 'no', None)
    """
    return _MEANING.get(normalise(text)) if len(text) <= 20 else None


def find_yes_or_no(text: str) -> YesNo | Literal["both"] | None:
    """Return the yes or no of a completion, without knowing the language or the reference.

    In order: the completion begins with a yes or no that punctuation, a line break or the end follows, it begins with
    an English one, or it has one of the English ones anywhere. ``both``: it has both English ones and begins with
    neither.

    >>> find_yes_or_no("Sí, no hay duda."), find_yes_or_no("There is no effusion"), find_yes_or_no("left")
    ('yes', 'no', None)
    """
    numbered = _NUMBERED.match(text) is not None
    if not numbered and (first := _FIRST.match(text)) and (meaning := yes_or_no(first[1])):
        return meaning
    if not numbered and (start := _ENGLISH.match(text)):
        return "yes" if start[1].lower() == "yes" else "no"
    words = {word.lower() for word in _ENGLISH.findall(_NUMBERED.sub(" ", text))}
    if len(words) > 1:
        return "both"
    return ("yes" if words == {"yes"} else "no") if words else None
