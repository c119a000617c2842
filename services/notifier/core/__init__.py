"""What the notifier decides. Pure."""
