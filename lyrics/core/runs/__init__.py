"""A run's folder on disk: its configuration and its checkpoints."""
