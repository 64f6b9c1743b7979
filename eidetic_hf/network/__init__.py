"""A backbone in which tasks own units."""
