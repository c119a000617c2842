"""A small linear regression: reading the data, the algebra, the fit, and how it talks to wherry."""
