"""The notifier: tells people by email and systems by webhook how a job ended."""
