"""Numbers in the sentences that people read."""


def count(number: int, one: str, more: str | None = None) -> str:
    """Return *number* with what is counted: *one* for a single thing, else *more*, or *one* with an s."""
    return f"{number} {one if number == 1 else more or f'{one}s'}"
