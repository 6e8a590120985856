"""Explanations of images: computed, held, drawn and saved."""
