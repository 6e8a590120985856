"""A demonstration: a small detector with a known shortcut, and the heatmaps and the audit that reveal it.

The detector is trained on harbour scenes in which every boat under way is labelled and boats at anchor are not. A wake
therefore predicts the label better than the hull does, and the detector fires on wakes without a boat.
"""
