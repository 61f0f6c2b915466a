"""The commands, most of them as processes."""
