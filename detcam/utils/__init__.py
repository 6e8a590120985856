"""Helpers that know nothing of models, images or heatmaps."""
