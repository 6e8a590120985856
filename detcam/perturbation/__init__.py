"""Scores of changed images and of changed activations, and what changes them."""
