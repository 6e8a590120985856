"""Synthetic scenes whose content is known and whose objects can be removed one at a time."""
