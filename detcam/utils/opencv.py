"""Import of OpenCV with a remedy in the error message; other modules import `cv2` from this one."""

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be loaded: {error}. detcam installs opencv-python-headless; opencv-python and"
        " opencv-contrib-python overwrite its files, and cannot load on a machine without a display."
        " Remedy: pip uninstall opencv-python opencv-contrib-python;"
        " pip install --force-reinstall --no-deps opencv-python-headless"
    ) from error

__all__ = ["cv2"]
