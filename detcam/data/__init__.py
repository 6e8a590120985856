"""Images, annotations and ground truth, read and checked."""
