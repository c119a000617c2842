"""The outside systems that the notifier talks to."""
