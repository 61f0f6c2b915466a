"""The queue on disk, and what drains it."""
