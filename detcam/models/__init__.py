"""Models by name or checkpoint."""
