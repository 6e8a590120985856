"""Methods compared on detectors with planted shortcuts, whose false positives have a known cause."""
