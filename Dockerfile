# One image for every process of Overread; docker-compose.yml says which one a container runs.
#
#   docker build -t overread:local .
#   docker build -t overread:local --build-arg PIP_ARGS="--extra-index-url <PyTorch's CPU-only index>" .   # saves gigabytes

FROM python:3.11-slim

# git keeps the dataset versions.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TZ=UTC \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    OVERREAD_HOME=/var/lib/overread

# Nobody who could change the code or become root; the two folders are where volumes go.
RUN useradd --system --uid 10001 --create-home --home-dir /home/overread --shell /usr/sbin/nologin overread \
    && mkdir -p /var/lib/overread /var/lib/mlflow \
    && chown overread:overread /var/lib/overread /var/lib/mlflow

WORKDIR /srv/overread
ARG PIP_ARGS=""
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/constraints.txt
COPY api api
COPY workers workers
COPY pipelines pipelines
COPY registry registry
RUN python -m pip install --no-cache-dir --disable-pip-version-check $PIP_ARGS -c .ci/constraints.txt .

USER overread
WORKDIR /var/lib/overread
CMD ["overread", "--help"]
