"""One per machine: reports what it has, runs what it is told to, brings results home."""
