"""The whole stack on one machine: ``python -m infra.local up | down | demo | status | logs``."""
