# The image of one service: its own dependencies, shared/ and services/<service>/. No other service is there to be imported.
#
#   docker build -f infra/docker/service.Dockerfile --build-arg SERVICE=gateway -t wherry/gateway .
#
# Works with BuildKit and with the classic builder.
ARG PYTHON_BASE=python:3.11-slim-bookworm

FROM ${PYTHON_BASE} AS dependencies
ARG SERVICE
# From the machine that builds, where it has them; none of them stays in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements/*.lock /requirements/
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/wherry \
 && /opt/pip/bin/pip --python /opt/wherry/bin/python install --no-cache-dir --disable-pip-version-check --quiet \
        --require-hashes --no-deps --only-binary :all: \
        --requirement "/requirements/$(echo "$SERVICE" | tr _ -).lock"

FROM ${PYTHON_BASE}
ARG SERVICE
# /data belongs to the service: a named volume that is mounted there takes its owner from here.
RUN groupadd --gid 10001 wherry \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin wherry \
 && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=dependencies /opt/wherry /opt/wherry
WORKDIR /app
COPY infra/docker/healthcheck.py healthcheck.py
COPY shared shared
COPY services/__init__.py services/__init__.py
COPY services/${SERVICE} services/${SERVICE}
# The gateway reads there which filters there are.
COPY images/filters/filters.py images/filters/filters.py
# Compiled here because the root file system is read-only where it runs.
RUN /opt/wherry/bin/python -m compileall -q shared services
# An arena of memory per thread is more than a small service needs.
ENV PATH=/opt/wherry/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    MALLOC_ARENA_MAX=2 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SERVICE=${SERVICE}
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 CMD ["python", "healthcheck.py"]
# sh only to fill in the name; exec makes the service process 1, so that it gets the signals.
ENTRYPOINT ["sh", "-c", "exec python -m services.$SERVICE \"$@\"", "wherry"]
