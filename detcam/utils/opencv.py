"""Import of OpenCV with a remedy in the error message; other modules import `cv2` from this one."""

import numpy as np

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


def decode_image(content: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """Decode the bytes of an image file; return None for a damaged or empty one."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None


def start_threads() -> None:
    """Start the threads of OpenCV's pool, which the process shares, unless they run.

    Otherwise its first call on a large image starts them, and they keep the priority of the thread that made it.
    """
    cv2.cvtColor(np.zeros((512, 512, 3), np.uint8), cv2.COLOR_RGB2GRAY)  # large enough to be divided among threads
