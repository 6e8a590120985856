"""Scenes and detectors with planted shortcuts: false positives whose cause is known, and what finds it."""
