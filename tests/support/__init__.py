"""What several tests need: servers and certificates."""
