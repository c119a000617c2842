"""Questions and their answers (NATS request/reply), one module a subject."""
