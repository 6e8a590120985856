"""Runs over many images: a folder that another process can continue, and the engines that do the work."""

from detcam.runs.crash_log import CrashLog
from detcam.runs.directory import MANIFEST, RUN_FOLDER, SHARDS, Run, Stage, is_unfinished, plan_shards, read_shards
from detcam.runs.engines import Engine, LocalEngine, Work
from detcam.runs.lock import lock_folder
from detcam.runs.overlap import StagedWork
from detcam.runs.ray_engine import EngineLike, RayEngine, make_engine

__all__ = [
    "MANIFEST",
    "RUN_FOLDER",
    "SHARDS",
    "CrashLog",
    "Engine",
    "EngineLike",
    "LocalEngine",
    "RayEngine",
    "Run",
    "Stage",
    "StagedWork",
    "Work",
    "is_unfinished",
    "lock_folder",
    "make_engine",
    "plan_shards",
    "read_shards",
]
