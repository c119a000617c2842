"""Keeps what queries need and what jobs leave: MongoDB and GridFS behind NATS questions."""
