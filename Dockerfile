# syntax=docker/dockerfile:1
# Four images from one file: docker build --target router|executor|optimizer|gateway .
FROM python:3.11-slim AS source
WORKDIR /src
COPY pyproject.toml README.md LICENSE* ./
COPY smoa smoa
COPY services services

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/smoa
ENV PATH=/opt/smoa/bin:$PATH
WORKDIR /src
# Every file that is installed has one of the hashes in requirements/ (`make requirements` writes them), but torch's: its index is the builder's.
COPY requirements requirements
RUN pip install --require-hashes -r requirements/build.txt

FROM build AS build-router
RUN for part in router embedding; do pip install --require-hashes --no-deps -r requirements/$part.txt || exit 1; done
COPY --from=source /src .
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-executor
# torch first, in a layer of its own: gigabytes that a changed source file does not touch.
# It is the CUDA build unless an extra index offers another one (see k8s/README.md).
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt .
RUN pip install -c constraints.txt torch
RUN for part in executor embedding base-model; do pip install --require-hashes --no-deps -r requirements/$part.txt || exit 1; done
COPY --from=source /src .
# The forward pass for every kind of processor: the image has no compiler, and the node may not be the builder's.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-deps --no-build-isolation . && python -m services.executor.backends.native.library \
 && cp -r services/executor/backends/native/prebuilt /opt/smoa/lib/python3.11/site-packages/services/executor/backends/native/

FROM build AS build-optimizer
RUN pip install --require-hashes --no-deps -r requirements/optimizer.txt
COPY --from=source /src .
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-gateway
RUN pip install --require-hashes --no-deps -r requirements/gateway.txt
COPY --from=source /src .
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11-slim AS runtime
# The kernel ignores a SIGTERM that process 1 does not handle, and a service has no handler until it has started: tini is process 1.
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 smoa && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin smoa
ENV PATH=/opt/smoa/bin:$PATH PYTHONUNBUFFERED=1
# A writable working directory for plain `docker run`; a deployment sets the data folders instead.
WORKDIR /tmp
USER 10001:10001

FROM runtime AS router
COPY --from=build-router /opt/smoa /opt/smoa
EXPOSE 50051
ENTRYPOINT ["tini", "--", "python", "-m", "services.router"]

FROM runtime AS executor
COPY --from=build-executor /opt/smoa /opt/smoa
EXPOSE 50052
ENTRYPOINT ["tini", "--", "python", "-m", "services.executor"]

FROM runtime AS optimizer
COPY --from=build-optimizer /opt/smoa /opt/smoa
ENTRYPOINT ["tini", "--", "python", "-m", "services.optimizer"]

FROM runtime AS gateway
COPY --from=build-gateway /opt/smoa /opt/smoa
EXPOSE 8080
ENTRYPOINT ["tini", "--", "python", "-m", "services.gateway"]
