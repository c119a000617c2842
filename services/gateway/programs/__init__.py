"""Programs that go with users' code into their containers. Nothing here runs in the gateway."""
