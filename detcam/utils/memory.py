"""Running out of memory: recognized in the errors of all libraries, and a limit that makes it an error."""

from __future__ import annotations

import re

import torch

from detcam.utils.warnings import warn

_MESSAGES = re.compile(
    "out of memory|memory does not suffice|MemoryError"
    "|can't allocate memory|not enough memory|insufficient memory|unable to allocate|bad_alloc"
    "|could not create a memory|cannot allocate memory|failed to launch worker thread|can't start new thread",
    re.IGNORECASE,
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
MIN_LIMIT = 2**28
"""Minimum of `limit_memory`: the libraries alone take more than this many bytes."""


class MemoryLimitWarning(UserWarning):
    """Work was split into smaller parts because the memory did not suffice."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice, on the CPU or a GPU, in PyTorch or another library."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, Exception) and _MESSAGES.search(str(error)) is not None


def check_probe_memory(error: BaseException, count: int, size_hw: tuple[int, int]) -> None:
    """Raise RuntimeError, with the remedy, if memory did not suffice for the noise image of a probe.

    Args:
        error: what was raised.
        count: number of images in the probe; another one follows if it is more than one.
        size_hw: height and width of the images.
    """
    if is_out_of_memory(error) and count == 1:
        raise RuntimeError(
            f"memory does not suffice for one image of {size_hw[0]} x {size_hw[1]} pixels, with which the network is "
            f"tried; pass a smaller image_size= ({error})"
        ) from error


def alone_out_of_memory(error: BaseException) -> RuntimeError:
    """The error, with the remedy, of a single image for which memory does not suffice; frees the frames of `error`."""
    release_memory(error)
    return RuntimeError(
        "memory does not suffice for this image alone; pass a smaller image_size= (--image-size), or allow more "
        f"(--max-memory) ({error})"
    )


def release_memory(error: BaseException) -> None:
    """Free what a failed computation held: the frames of its traceback, and PyTorch's cache on a GPU."""
    error.__traceback__ = None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def warn_out_of_memory() -> None:
    """Say that parts get smaller; the text has no numbers, so that Python's default filter shows it once."""
    warn(
        "memory does not suffice for so many images at once, so fewer share a pass; a smaller batch_size "
        "(--batch-size) avoids the attempts",
        MemoryLimitWarning,
    )


def parse_bytes(text: str) -> int:
    """Return a number of bytes from a text such as ``4G``, ``512M`` or ``1.5GB``.

    Raises:
        ValueError: the text is no size, or it is below 256 MB.

    Example:
        >>> from detcam.utils.memory import parse_bytes
        >>> parse_bytes("1.5G")
        1610612736
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < MIN_LIMIT:
        raise ValueError(f"expected a size of at least 256M, such as 4G; got {text!r}")
    return size


def limit_memory(size: int) -> None:
    """Limit the memory of this process, so that too large a batch is an error, which is halved, and not the end.

    Without a limit Linux promises more memory than there is, and kills the process that uses it. The limit is for the
    rest of the process, and for PyTorch's memory on each GPU.

    Args:
        size: maximum number of bytes.

    Raises:
        ValueError: the operating system has no such limit.
    """
    try:
        import resource
    except ImportError as error:
        raise ValueError("this operating system does not limit the memory of a process") from error
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(size / total, 1.0), index)
