"""Programs that mypy and pyright check, as those of an application: without plugins."""
