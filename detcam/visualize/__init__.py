"""Heatmaps drawn over images."""
