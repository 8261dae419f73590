"""Tensors on disk: checkpoints, model folders, the hub."""
