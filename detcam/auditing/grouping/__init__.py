"""Causes of errors: the kind of evidence, groups of errors, their hierarchy, and what it says about all errors."""
