"""A demonstration: a small detector with a known shortcut, and the heatmaps and the audit that reveal it.

The detector is trained on harbor scenes in which every boat under way is labeled and boats at anchor are not. A wake
therefore predicts the label better than the hull does, and the detector fires on wakes without a boat.
"""
