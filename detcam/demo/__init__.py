"""A small harbour in which a detector learned a planted shortcut, so that a heatmap has something to find.

The images were labelled from transponders: every boat under way is listed, boats at anchor are not. A wake
therefore gives a boat away better than its hull does, and the detector fires on wakes that no boat has made.
"""
