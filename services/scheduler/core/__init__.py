"""Decides. Pure: no IO, clock, randomness, environment or log; time and ids come in as data."""
