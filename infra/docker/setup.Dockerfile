# Runs once when the stack starts, and does what no service may: makes the streams (as NATS user operator) and the
# replica set. Also the demo's mail and webhook receiver.
ARG PYTHON_BASE=python:3.11-slim-bookworm

FROM ${PYTHON_BASE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements/*.lock infra/docker/one-package.sh /requirements/
# Storage's dependencies hold both drivers; the receiver adds an SMTP server.
RUN for name in aiosmtpd atpublic attrs; do sh /requirements/one-package.sh "$name" /requirements/stack.lock; done \
        >/requirements/sinks.lock \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/wherry \
 && for lock in storage sinks; do \
        /opt/pip/bin/pip --python /opt/wherry/bin/python install --no-cache-dir --disable-pip-version-check --quiet \
            --require-hashes --no-deps --only-binary :all: --requirement "/requirements/$lock.lock"; \
    done

FROM ${PYTHON_BASE}
RUN groupadd --gid 10001 wherry \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin wherry \
 && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=dependencies /opt/wherry /opt/wherry
WORKDIR /app
COPY shared shared
COPY infra infra
RUN /opt/wherry/bin/python -m compileall -q shared infra
ENV PATH=/opt/wherry/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["python", "-m"]
