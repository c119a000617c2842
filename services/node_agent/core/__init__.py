"""What the agent decides. Pure: no IO, no clock, no randomness, no environment, no log."""
