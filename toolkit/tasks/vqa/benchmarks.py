"""Public datasets of open and closed questions."""

from toolkit.data.benchmark import Benchmark

_PARQUET_TRAIN, _PARQUET_TEST = "data/train-*.parquet", "data/test-*.parquet"

_SLAKE = {
    "source": "Liu et al. 2021, arXiv 2102.09542",
    "train": ("train.json",),
    "test": ("test.json",),
    "image_root": ("imgs",),
}

BENCHMARKS = (
    Benchmark(
        name="vqa_rad",
        source="Lau et al. 2018, doi:10.1038/sdata.2018.251",
        train=("trainset.json", _PARQUET_TRAIN),
        test=("testset.json", _PARQUET_TEST),
        image_root=("images", "VQA_RAD Image Folder"),
    ),
    Benchmark(name="slake", settings={"filter": {"q_lang": "en"}}, **_SLAKE),  # type: ignore[arg-type]
    Benchmark(name="slake_zh", settings={"filter": {"q_lang": "zh"}}, **_SLAKE),  # type: ignore[arg-type]
    Benchmark(
        name="path_vqa",
        source="He et al. 2020, arXiv 2003.10286, as flaviagiammarino/path-vqa",
        train=(_PARQUET_TRAIN,),
        test=(_PARQUET_TEST,),
    ),
    Benchmark(
        name="vqa_med_2019",
        source="Ben Abacha et al. 2019, CEUR-WS vol. 2380, paper 272",
        train=("All_QA_Pairs_train.txt", "*/All_QA_Pairs_train.txt"),
        test=("VQAMed2019_Test_Questions_w_Ref_Answers.txt", "*/VQAMed2019_Test_Questions_w_Ref_Answers.txt"),
        image_root=("images",),
    ),
    Benchmark(
        name="mimic_cxr_vqa",
        source="Bae et al. 2023, arXiv 2310.18652",
        train=("train.json", "mimiccxrvqa/dataset/train.json"),
        test=("test.json", "mimiccxrvqa/dataset/test.json"),
        image_root=("images", "files"),
        settings={"group": "subject_id", "max_dropped": 0.5},  # every question without an answer has an empty list
    ),
)
