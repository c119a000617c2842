"""The `wherry` command."""

from client.wherry.cli.main import app

__all__ = ["app"]
