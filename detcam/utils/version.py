"""The installed version of detcam."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("detcam")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
