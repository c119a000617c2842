"""`python -m client.wherry` is the `wherry` command."""

from client.wherry.cli import app

app(prog_name="wherry")
