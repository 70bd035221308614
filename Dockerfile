# The core as a command: compiles, inspects and verifies sets. docs/install.md shows how to build and run it.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE cli.py ./
COPY compiler compiler/
COPY registry registry/
COPY schemas schemas/
COPY trainer trainer/
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels && mkdir -m 1777 /cache
# Any user may run it: the cache of compiled data is in /cache, which everyone may write to.
ENV XDG_CACHE_HOME=/cache HOME=/tmp
WORKDIR /data
ENTRYPOINT ["cli"]
CMD ["--help"]
