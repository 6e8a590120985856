"""Verification of explanations by intervention: proposed regions and controls are removed from the image."""
