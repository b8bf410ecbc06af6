# The toolkit for one NVIDIA GPU, with the tested versions. Build it from the root of the repository:
#
#     docker build -t toolkit .
#     docker run --rm --gpus all -v "$PWD:/home/toolkit/runs" toolkit run quickstart
#
# The folder must be writable for the user 10001, or add --user. The wheels of torch have their CUDA libraries. The base
# image adds the driver interface and the tools of the runtime.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# libgl1 and libglib2.0-0: OpenCV. gcc and the headers: Triton compiles kernels when it first needs them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc libc6-dev libgl1 libglib2.0-0 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 toolkit \
    && python3 -m venv /opt/toolkit \
    && mkdir /home/toolkit/runs \
    && chown toolkit:toolkit /home/toolkit/runs

WORKDIR /tmp/source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY recipes recipes
COPY toolkit toolkit
# Without the pin of Pillow, because trackio requires a version below 13.
RUN grep -v "^pillow==" constraints.txt > /tmp/constraints.txt \
    && /opt/toolkit/bin/pip install ".[dicom,nifti,compute,tracking]" -c /tmp/constraints.txt \
    && rm -rf /tmp/source/* /tmp/constraints.txt

ENV PATH=/opt/toolkit/bin:$PATH \
    TOOLKIT_CACHE=/home/toolkit/runs/.cache/toolkit \
    HF_HOME=/home/toolkit/runs/.cache/huggingface

USER 10001
WORKDIR /home/toolkit/runs
ENTRYPOINT ["toolkit"]
CMD ["--help"]
