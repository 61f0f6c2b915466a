"""Options: their schemas, and from text to values and objects."""
