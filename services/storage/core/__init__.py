"""What storage decides, without asking anything: projections, queries, rules of access."""
