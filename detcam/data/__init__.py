"""Reading and validation of images, annotations and ground truth."""
