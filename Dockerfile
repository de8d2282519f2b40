# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
# the compiler turns core and data path into C (hatch_build.py); it does not get into the image
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
RUN python -m venv /opt/prelude && /opt/prelude/bin/pip install --no-cache-dir --upgrade pip
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY scripts/compiling.py ./scripts/
COPY prelude_proxy ./prelude_proxy
# `train` brings xgboost-cpu: the same library without the CUDA half. Serving alone needs none of it:
# --build-arg EXTRAS= makes an image some 200 MB smaller.
ARG EXTRAS=[train]
RUN PRELUDE_COMPILE=1 /opt/prelude/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home prelude
COPY --from=build /opt/prelude /opt/prelude
ENV PATH=/opt/prelude/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9090/healthz', timeout=2)"]
ENTRYPOINT ["prelude-proxy"]
CMD ["serve"]
