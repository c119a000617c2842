"""Answers the questions of the other services."""
