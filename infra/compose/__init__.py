"""The stack in containers: ``python -m infra.compose prepare | images | up | smoke | down``."""
