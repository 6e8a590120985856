"""Loading of models by name or from checkpoints."""
