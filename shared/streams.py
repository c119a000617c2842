"""Streams and consumers as code: created at set-up, compared at every start."""

# Filled in with the bus.
