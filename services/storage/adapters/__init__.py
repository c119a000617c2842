"""MongoDB, collection by collection, and the hashing of passwords."""
