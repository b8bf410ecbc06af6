"""Scores of a generated report against a reference: BLEU, ROUGE-L and length.

BLEU is sacrebleu's (Post 2018, arXiv 1804.08771). ROUGE-L is the F-measure of the longest common subsequence
(Lin 2004), by the package rouge-score without stemming. Both packages are imported when the first score is computed.

One change for languages other than English: rouge-score deletes all letters beyond a-z, so a Chinese report would have
no tokens. Here, a token is a run of letters and digits of any script, or one Chinese, Japanese or Korean character. For
English text the tokens are the same.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from toolkit.scoring.text import tokens

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(f"[{_CJK}]|[^\\W_{_CJK}]+")
_HAS_CJK = re.compile(f"[{_CJK}]")


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure of ROUGE-L, in [0, 1]. It is 0 if one of the texts has no tokens.

    >>> rouge_l("police kill the gunman", "police killed the gunman")  # Lin 2004: subsequence of 3 of 4 and 4
    0.75
    """
    return float(_rouge().score(reference, prediction)["rougeL"].fmeasure)


def sentence_bleu(prediction: str, reference: str) -> float:
    """Return sacrebleu's BLEU of one text, in [0, 1], up to the order of n-grams that the texts have.

    >>> round(sentence_bleu("no focal opacity or effusion", "no focal opacity or effusion"), 6)
    1.0
    """
    return _unit(_bleu(_tokenizer([reference]), per_text=True).sentence_score(prediction, [reference]).score)


def bleu_counts(prediction: str, reference: str) -> tuple[int, ...]:
    """Return what the BLEU of a set needs of one text: both lengths, then matching and all n-grams of each order."""
    found = _bleu(_tokenizer([reference]), per_text=False).corpus_score([prediction], [[reference]])
    return (found.sys_len, found.ref_len, *found.counts, *found.totals)


def corpus_bleu(counts: Sequence[int]) -> float:
    """Return sacrebleu's BLEU of a set, in [0, 1]. It is not the mean of ``sentence_bleu``.

    >>> first = bleu_counts("no focal left opacity", "no focal left opacity")
    >>> second = bleu_counts("a clear lung", "a clear left lung")
    >>> round(corpus_bleu([sum(pair) for pair in zip(first, second)]), 4)
    0.7408

    Args:
        counts: The sums of the ``bleu_counts`` of its texts.
    """
    from sacrebleu.metrics.bleu import BLEU

    sys_len, ref_len, *grams = map(int, counts)
    order = len(grams) // 2
    return _unit(BLEU.compute_bleu(grams[:order], grams[order:], sys_len, ref_len, smooth_method="exp").score)


def length_score(prediction: str, reference: str) -> float:
    """Return the shorter of both lengths divided by the longer, in words. Two texts without words score 1.

    >>> length_score("no effusion", "there is no pleural effusion")
    0.4
    """
    lengths = sorted((len(tokens(prediction)), len(tokens(reference))))
    return lengths[0] / lengths[1] if lengths[1] else 1.0


class _Tokenizer:
    """Tokens of any script, for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return _TOKEN.findall(text.lower())


@lru_cache(maxsize=1)
def _rouge() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


@lru_cache(maxsize=8)
def _bleu(tokenizer: str, *, per_text: bool) -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=per_text)


def _tokenizer(references: Sequence[str]) -> str:
    """Return sacrebleu's default tokenizer, or the one that separates Chinese characters if a reference has any."""
    return "zh" if any(_HAS_CJK.search(text) for text in references) else "13a"


def _unit(percent: float) -> float:
    """Return a percentage as a fraction. A perfect score may exceed 100 by rounding."""
    return min(1.0, percent / 100)
