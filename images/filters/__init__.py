"""Filters for pictures, as an image of ours: by hand, as an ordinary job, or as a warm worker of a map job."""
