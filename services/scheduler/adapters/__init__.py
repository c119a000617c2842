"""One outside thing a file: the leader's lease, the metrics."""
