"""The way in for people and programs: REST and server-sent events over the bus. Keeps no state of its own."""
