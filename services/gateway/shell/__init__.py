"""What the gateway does: asks the services, records what users want, and passes bytes and events on."""
