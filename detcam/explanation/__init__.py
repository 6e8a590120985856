"""Explanations of images: `detcam.explain`, its result, and writing explanations to disk."""
