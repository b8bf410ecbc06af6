"""The curriculum of the tiny model: short questions about chest X-rays, skin lesions and screens.

Each turn has one part of an answer format. The texts are those that the shipped weights were trained on, so their
wording does not change.
"""

from collections.abc import Iterator

from tests.tiny_training import chest, screens, skin
from tests.tiny_training.turns import ImageDomain
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import SIDES
from toolkit.tasks.mcq import prompt as mcq
from toolkit.tasks.vqa import prompt as vqa

FIRST = 1_000_000
"""First image number. Synthetic datasets use lower numbers, so no image of a test split was trained on."""
DOMAINS = (
    ImageDomain("chest", chest.draw, chest.texts, 0.2, 2),
    ImageDomain("skin", skin.draw, skin.texts, 0.55, 3),
    ImageDomain("screens", screens.draw, screens.texts, 0.25, 2),
)


def corpus(seed: int, first: int, count: int, rng: Rng) -> Iterator[str]:
    """Yield text for the tokenizer: turns, the answer formats of every task, and terms of medical imaging."""
    yield from _WORDS * 20
    for number in range(first, first + count):
        for domain in DOMAINS:
            yield from domain.texts(seed, number, rng)


_WORDS = (
    *SIDES,
    "<start_working_out>\nreasoning about the image\n<end_working_out>\n<SOLUTION>\nB - Pneumonia\n</SOLUTION>",
    mcq.INSTRUCTION,
    vqa.INSTRUCTION,
    "Question: Options: Answer: Indication: Findings: Impression: Comparison: Report: Yes No yes no unknown none",
    "Answer with one word or a short phrase. Answer yes or no. Is there evidence of a pneumothorax? What is shown?",
    "<diagnosis>melanoma</diagnosis> <location>upper left</location> <bbox>[12, 34, 56, 78]</bbox>",
    "<polygon>[[1, 2], [3, 4]]</polygon> melanocytic nevus, basal cell carcinoma, actinic keratosis, benign keratosis, "
    "dermatofibroma, vascular lesion, melanoma; asymmetry, irregular border, several colours, size, location",
    "upper left, upper centre, upper right, centre left, centre, centre right, lower left, lower centre, lower right",
    "CLICK SCROLL ZOOM SEGMENT TEXT COMPLETE null true false {} [] [12,34] [12,34,56,78]",
    "Goal: Short-term memory: {} Long-term memory: {} The picture shows the screen now. What is the next step?",
    "chest radiograph, computed tomography, magnetic resonance, ultrasound, brain, abdomen, liver, kidney, lung, heart",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. 0 1 2 3 4 5 6 7 8 9",
)
