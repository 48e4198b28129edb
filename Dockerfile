# Serves a trained run: a page, and answers to programs. See docs/deployment.md.
#
#   docker build -t flowers --build-arg TORCH_INDEX=ADDRESS .
#   docker run --rm --init --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -p 127.0.0.1:7860:7860 -v "$PWD/runs/mine:/run:ro" -e FLOWERS_APP_TOKEN flowers
FROM python:3.12-slim

# The address of the package index with the CPU builds of torch, which pytorch.org names under "Get started" (Pip, CPU).
# Without it, pip installs the builds for CUDA: they work on a CPU too, but take several gigabytes more.
ARG TORCH_INDEX=""

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# torch and torchvision come from the same index: those of different ones do not fit together.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

COPY . /source
RUN pip install "/source[app]" && rm -r /source

# All that is ever written are caches, in /tmp: of matplotlib, of torch, and of flowers.
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin flowers
USER 10001:10001
WORKDIR /tmp

EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]

# The last line is the place for more settings: docker run … flowers 'allowed_hosts=[flowers.example.com]' confidence=0.8
ENTRYPOINT ["flowers", "app", "run=/run", "host=0.0.0.0"]
CMD ["allowed_hosts=[localhost]"]
