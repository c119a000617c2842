"""The cases: every operation of the REST interface asked as a user would, by subject in the order in which they run."""

from importlib import import_module

from tests.e2e.endpoints.things import CASES, Things

__all__ = ["CASES", "Things"]

for subject in ("people", "data", "jobs", "images", "trainings", "deployments", "catalogue", "machines"):
    import_module(f"{__name__}.{subject}")
