# syntax=docker/dockerfile:1
#
#   docker build --target cpu  -t hintdistill:cpu  .
#   docker build --target cuda -t hintdistill:cuda .
#   docker run --rm -v "$PWD:/data" hintdistill:cpu run mine/hintdistill.yaml
#   docker run --rm --gpus all -v "$PWD:/data" hintdistill:cuda doctor
#
# Neither target has been built yet: no builder was at hand. tests/test_docker.py holds it against what it names.
ARG PYTHON_TAG=3.12-slim-bookworm

# the package as a wheel, so that neither image has the repository in it
FROM python:${PYTHON_TAG} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY hintdistill hintdistill
COPY prompts prompts
COPY configs configs
COPY examples/toolworld examples/toolworld
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_TAG} AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TOKENIZERS_PARALLELISM=false \
    HF_HOME=/data/.cache/huggingface
RUN useradd --create-home --uid 1000 hint \
    && mkdir /data \
    && chown hint /data
COPY --from=wheel /wheels /wheels
WORKDIR /data
ENTRYPOINT ["hintdistill"]
CMD ["--help"]

# without a GPU: the build of torch that brings no CUDA packages
FROM base AS cpu
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==${TORCH}" \
    && python -m pip install --no-cache-dir "$(ls /wheels/*.whl)[critic,serve]"
USER hint

# with a GPU: torch's own CUDA libraries; the host brings the driver and the container toolkit
FROM base AS cuda
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==${TORCH}" \
    && python -m pip install --no-cache-dir "$(ls /wheels/*.whl)[critic,serve]"
USER hint
