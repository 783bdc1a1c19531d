# CPU:   docker build -t simclr_jax .
# GPU:   docker build -t simclr_jax --build-arg EXTRAS=report,gpu .     (run with --gpus all; CUDA comes with the packages)
# TPU:   docker build -t simclr_jax --build-arg EXTRAS=report,tpu,tfds,gcs .      (launch/gke/jobset.yaml)
# Run:   mkdir -p runs && docker run --rm --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD/runs:/runs" \
#            simclr_jax --config=smoke --workdir=smoke      (as you, so that the files in runs/ are yours)
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE ./
COPY simclr_jax simclr_jax
COPY configs configs
ARG EXTRAS=report
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_BUILD_CONSTRAINT=/src/constraints.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
RUN useradd --create-home --uid 1000 trainer && mkdir /runs && chown trainer /runs
USER 1000
WORKDIR /runs
ENTRYPOINT ["simclr_jax"]
CMD ["--help"]
