"""Carries out what the core decides, and tells it what came of it."""
