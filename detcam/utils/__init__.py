"""Helpers that are independent of models, images and heatmaps."""
