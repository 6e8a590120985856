"""Drawn scenes whose content is known."""
