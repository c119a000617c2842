"""Everything that puts the services onto machines."""
