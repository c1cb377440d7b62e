"""Reads and writes PyTorch checkpoints at the speed of the storage they lie on.

>>> import veturboio
>>> veturboio.save_file(tensors, "model.safetensors")
>>> tensors = veturboio.load("model.safetensors", map_location="cpu")
"""

from veturboio._library import __version__, cmake_prefix_path
from veturboio.errors import ArgumentError, FormatError
from veturboio.helper import init_io_helper
from veturboio.io import explain, load, metadata, save_file
from veturboio.model import load_model, save_model
from veturboio.pt import save_pt
from veturboio.shmem import load_to_shmem
from veturboio.unknown import Unknown

__all__ = [
    "ArgumentError",
    "FormatError",
    "Unknown",
    "__version__",
    "cmake_prefix_path",
    "explain",
    "init_io_helper",
    "load",
    "load_model",
    "load_to_shmem",
    "metadata",
    "save_file",
    "save_model",
    "save_pt",
]
