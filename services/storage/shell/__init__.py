"""Carries out what the core decides: follows the streams, groups writes, watches over uploads."""
