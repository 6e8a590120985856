"""The ``detcam`` command."""
