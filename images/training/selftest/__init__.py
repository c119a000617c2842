"""Programs that show whether a container has what it was promised."""
