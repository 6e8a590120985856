"""Draws heatmaps, boxes and concepts over images."""
