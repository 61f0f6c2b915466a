"""The queue on disk: files, names, locks, and the commands' view of it."""
