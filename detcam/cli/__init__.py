"""The ``detcam`` command: one module per subcommand. Modules that need PyTorch are imported when a command runs."""
