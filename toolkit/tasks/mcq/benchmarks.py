"""Public datasets of multiple-choice questions."""

from toolkit.data.benchmark import Benchmark, Published

BENCHMARKS = (
    Benchmark(
        name="rexvqa",
        source="Pal et al. 2025, arXiv 2506.04353",
        train=("train_vqa_data.json", "metadata/train_vqa_data.json"),
        test=("test_vqa_data.json", "metadata/test_vqa_data.json"),
        published=(Published("MedGemma 4B, zero-shot", 0.8324, "arXiv 2506.04353"),),
    ),
    Benchmark(
        name="pmc_vqa",
        source="Zhang et al. 2023, arXiv 2305.10415, version 1",
        train=("train.csv",),
        test=("test_clean.csv", "test.csv"),
        image_root=("images", "figures"),
    ),
    Benchmark(
        name="pmc_vqa_2",
        source="Zhang et al. 2023, arXiv 2305.10415, version 2",
        train=("train_2.csv",),
        test=("test_2.csv",),
        image_root=("images_2", "figures", "images"),
    ),
    Benchmark(
        name="omnimedvqa",
        source="Hu et al. 2024, arXiv 2402.09181. No split is published",
        test=("QA_information/Open-access", "Open-access"),
    ),
    Benchmark(
        name="medxpertqa",
        source="Zuo et al. 2025, arXiv 2501.18362, subset MM",
        train=("MM/dev.jsonl", "dev.jsonl"),
        test=("MM/test.jsonl", "test.jsonl"),
        image_root=("images",),
    ),
    Benchmark(
        name="mmmu",
        source="Yue et al. 2024, arXiv 2311.16502, one subject, such as Clinical_Medicine, on its validation split",
        train=("dev-*.parquet",),
        test=("validation-*.parquet",),
        settings={"filter": {"question_type": "multiple-choice"}},
    ),
)
