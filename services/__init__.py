"""The five services. They meet only on NATS subjects: none imports another."""
