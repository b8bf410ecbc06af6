"""The curriculum of the tiny model: short questions about chest X-rays, skin lesions, screens and tissue.

Each turn has one part of an answer format. A new wording needs newly trained weights.
"""

from collections.abc import Iterator

from tests.tiny_training import chest, reports, screens, skin, tissue
from tests.tiny_training.turns import ImageDomain
from toolkit.synthetic import Rng
from toolkit.synthetic.chest import SIDES
from toolkit.tasks.classify import prompt as classify
from toolkit.tasks.mcq import prompt as mcq
from toolkit.tasks.report_generation import prompt as report_generation
from toolkit.tasks.vqa import prompt as vqa

FIRST = 1_000_000
"""First image number. Synthetic datasets use lower numbers, so no image of a test split was trained on."""
DOMAINS = (
    ImageDomain("chest", chest.draw, chest.texts, 0.17, 2),
    ImageDomain("reports", reports.draw, reports.texts, 0.05, 2),
    ImageDomain("skin", skin.draw, skin.texts, 0.52, 3),
    ImageDomain("screens", screens.draw, screens.texts, 0.21, 2),
    ImageDomain("tissue", tissue.draw, tissue.texts, 0.05, 2),
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
    classify.ONE,
    classify.SEVERAL,
    report_generation.FREE,
    *report_generation.QUESTIONS.values(),
    "Question: Options: Answer: Indication: Findings: Impression: Comparison: Report: Yes No yes no unknown none",
    "Answer with one word or a short phrase. Answer yes or no. Is there evidence of a pneumothorax? What is shown?",
    "<diagnosis>melanoma</diagnosis> <location>upper left</location> <bbox>[12, 34, 56, 78]</bbox>",
    "Answer with one line for each finding: class <bbox>[x1, y1, x2, y2]</bbox>. Without a finding, answer none.",
    "Answer with one line for each lesion: <diagnosis>name</diagnosis>. Diagnoses: Places: Classes: such as",
    "Coordinates: x from 0 to 100, y from 0 to 100, from the upper left corner. What does this image of the skin show?",
    "<polygon>[[1, 2], [3, 4]]</polygon> melanocytic nevus, basal cell carcinoma, actinic keratosis, benign keratosis, "
    "dermatofibroma, vascular lesion, melanoma; asymmetry, irregular border, several colours, size, location",
    "upper left, upper centre, upper right, centre left, centre, centre right, lower left, lower centre, lower right",
    "CLICK SCROLL ZOOM SEGMENT TEXT COMPLETE null true false {} [] [12,34] [12,34,56,78]",
    "Goal: Short-term memory: {} Long-term memory: {} The image shows the current screen. What is the next step?",
    "chest radiograph, computed tomography, magnetic resonance, ultrasound, brain, abdomen, liver, kidney, lung, heart",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. 0 1 2 3 4 5 6 7 8 9",
)
