"""Zips for tests, written structure by structure: hostile ones, and good ones of many tools."""
