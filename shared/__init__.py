"""The contract between the services: subjects, messages, the bus and the blob protocol. No business rules."""
