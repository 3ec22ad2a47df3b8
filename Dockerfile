# syntax=docker/dockerfile:1
# Four images of one project:
#   docker build --target gateway -t lychee-gateway .         no torch, no SGLang; not root
#   docker build --target router -t lychee-router .           SGLang's router, for several engines
#   docker build --target engine-cpu -t lychee-engine:cpu .   SGLang on a CPU, with the embedded model unpacked
#   docker build --target engine-gpu -t lychee-engine:gpu .   SGLang on NVIDIA GPUs
# Base images are pinned by tag; add @sha256:... digests for your registry when you build for production.
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.9

FROM ${UV_IMAGE} AS uv

# The project's source, once for all targets: only what a wheel is made of.
FROM scratch AS source
COPY pyproject.toml constraints.txt README.md LICENSE /
COPY lychee_sgl /lychee_sgl
COPY kernels/lychee_kernels /kernels/lychee_kernels
COPY server/lychee_server /server/lychee_server


# ---------------------------------------------------------------------------------------------------- gateway
FROM ${PYTHON_IMAGE} AS gateway-build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv VIRTUAL_ENV=/usr/lib/lychee
WORKDIR /src
RUN uv venv /usr/lib/lychee
# First what changes rarely: the pinned dependencies. Then the project itself.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/uv uv pip install -r pyproject.toml --extra gateway -c constraints.txt
COPY --from=source / ./
RUN --mount=type=cache,target=/var/cache/uv uv pip install -c constraints.txt --no-deps .

FROM ${PYTHON_IMAGE} AS gateway
# /var/lib/lychee is where a volume shared with the engine brings the speed curve.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lychee \
    && install --directory --owner=10001 /var/lib/lychee
COPY --from=gateway-build /usr/lib/lychee /usr/lib/lychee
ENV PATH=/usr/lib/lychee/bin:$PATH PYTHONUNBUFFERED=1 LYCHEE_GATEWAY_HOST=0.0.0.0
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["lychee-gateway"]


# ----------------------------------------------------------------------------------------------------- router
FROM ${PYTHON_IMAGE} AS router
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lychee
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv VIRTUAL_ENV=/usr/lib/lychee \
    PATH=/usr/lib/lychee/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /src
RUN uv venv /usr/lib/lychee
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/uv uv pip install -r pyproject.toml --extra router -c constraints.txt
USER 10001
EXPOSE 8001 29000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=4)"]
# One failure takes an engine out for ten seconds: a dead one is not tried until the tries are used up. One in a long
# prefill is silent for a while: SGLang itself gives up on its /health after 20 seconds, not after the router's 5.
ENTRYPOINT ["smg", "launch", "--host", "0.0.0.0", "--port", "8001", "--prometheus-host", "0.0.0.0", \
    "--prometheus-port", "29000", "--policy", "cache_aware", "--cb-failure-threshold", "1", \
    "--cb-timeout-duration-secs", "10", "--health-check-interval-secs", "5", "--health-check-timeout-secs", "25", \
    "--worker-startup-check-interval", "5"]


# ------------------------------------------------------------------------------------------------- engine-cpu
FROM ${PYTHON_IMAGE} AS engine-cpu
# libnuma and libgomp are what SGLang and torch expect of the system; g++ compiles torch's and Triton's small parts.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/lychee --create-home --shell /usr/sbin/nologin lychee \
    && install --directory --owner=10001 /var/cache/lychee /var/cache/lychee/huggingface
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv VIRTUAL_ENV=/usr/lib/lychee \
    PATH=/usr/lib/lychee/bin:$PATH PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8 XDG_CACHE_HOME=/var/cache/lychee \
    LYCHEE_MEMORY_BANK=/var/lib/lychee/memory.sqlite
WORKDIR /src
RUN uv venv /usr/lib/lychee
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install -r pyproject.toml --extra engine --extra model --extra train -c constraints.txt
COPY --from=source / ./
RUN --mount=type=cache,target=/var/cache/uv uv pip install -c constraints.txt --no-deps . && rm -rf /src/*
USER 10001
WORKDIR /var/lib/lychee
RUN lychee-sgl model
EXPOSE 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=5m --retries=8 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=9)"]
ENTRYPOINT ["lychee-sgl", "engine", "--host", "0.0.0.0", "--port", "8001"]


# ------------------------------------------------------------------------------------------------- engine-gpu
FROM ${CUDA_IMAGE} AS engine-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/lychee --create-home --shell /usr/sbin/nologin lychee \
    && install --directory --owner=10001 /var/cache/lychee /var/cache/lychee/huggingface
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv \
    UV_PYTHON_INSTALL_DIR=/usr/lib/lychee-python VIRTUAL_ENV=/usr/lib/lychee \
    PATH=/usr/lib/lychee/bin:$PATH PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8 XDG_CACHE_HOME=/var/cache/lychee \
    LYCHEE_MEMORY_BANK=/var/lib/lychee/memory.sqlite
WORKDIR /src
RUN uv venv --python 3.11 /usr/lib/lychee
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install -r pyproject.toml --extra engine --extra model --extra train -c constraints.txt
COPY --from=source / ./
RUN --mount=type=cache,target=/var/cache/uv uv pip install -c constraints.txt --no-deps . && rm -rf /src/*
USER 10001
WORKDIR /var/lib/lychee
EXPOSE 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=20m --retries=8 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=9)"]
ENTRYPOINT ["lychee-sgl", "engine", "--host", "0.0.0.0", "--port", "8001"]
