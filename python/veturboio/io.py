"""``load`` and ``save_file``: the interface of the published library."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch

from veturboio import _fallback, _ops
from veturboio import placement as place
from veturboio._arguments import (
    check_mapping,
    check_weights_only,
    refuse,
    refuse_uninitialized,
    storage_options_of,
    wants_cipher,
    way_of,
)
from veturboio._fallback import Wanted
from veturboio._handle import Located
from veturboio._sources import File, held, is_address, opened, pinned
from veturboio._sources import FilePath as FilePath
from veturboio.background import Save, done, snapshot, start
from veturboio.errors import ArgumentError, UnknownNameError
from veturboio.placement import MapLocation
from veturboio.progress import Progress, watched
from veturboio.selection import Slices, as_options

#: How many versions of a file that is replaced all the time are tried.
_VERSIONS = 5


def load(
    file: File,
    map_location: MapLocation | None = "cpu",
    enable_fast_mode: bool = True,
    num_thread: int = 32,
    helper: Any = None,
    use_pinmem: bool = False,
    use_direct_io: bool = False,
    use_cipher: bool | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    way: str | None = None,
    names: Iterable[str] | None = None,
    slices: Slices | None = None,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
    one_allocation: bool = False,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: FilePath | None = None,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    restore_aliases: bool = True,
    skip_unknown: bool = False,
) -> dict[str, torch.Tensor]:
    """Load a safetensors or PyTorch file.

    The pickle of a PyTorch file is read without being run. Where it imports a name that the
    reader does not know, ``torch.load(weights_only=True)`` reads it instead, with all that is asked
    for here, and a warning says so once. It also knows the classes that
    ``torch.serialization.add_safe_globals`` allows. It reads on the caller's thread into memory of
    its own, so what says how to read, beside ``way="map"``, has no effect there.

    How the bytes come is chosen by where they lie, and ``explain`` tells. What the page cache holds
    is mapped, privately: nothing is copied, and writing to a tensor does not touch the file. What
    comes from FUSE or a network is read past the page cache into memory of the load's own, and so
    is a large file on a disk the first time, where there is memory enough. The memory goes with the
    last of the tensors. Each tensor has a storage of its own, except those that were saved as
    sharing one.

    Args:
        file: path of the file, or the address of one: ``s3://``, ``tos://``, ``gs://``, ``az://``,
            ``http://``, ``https://``, ``file://`` or ``sfcs://``. Or its content: as ``bytes``,
            which are a path too, and content if they contain a NUL, begin as a PyTorch file or are
            longer than any path; in any other object with the buffer protocol; or in a binary file
            open for reading, such as ``io.BytesIO`` or one of fsspec, which is read from where it
            stands to its end. What is no file of the system is copied into memory first.
        map_location: device of the tensors, of whatever type torch knows. ``"meta"`` reads the
            header alone. A dict has devices by name, or by what names begin with up to a dot, the
            longest of which decides, and ``""`` for all others:
            ``{"": "cuda:0", "layers.7": "cuda:1"}``; a tensor that it has no device for is an
            error. A function takes a name and returns a device, or None for the CPU. A tensor
            that several names share is there once on each of their devices. As torch.load has
            them: a dict whose keys are all devices, none of which a tensor's name begins with, has
            devices by the one that a tensor was saved from, ``{"cuda:0": "cpu"}``, and others
            stay; and a function of two arguments takes a storage in host memory and the device
            it was saved from, and returns the storage where it is wanted, or None for that
            device. Tensors of a safetensors file and of TorchScript count as saved from the CPU.
        enable_fast_mode: False reads on the caller's thread alone. The result is the same.
        num_thread: upper bound of reader threads, at least 1.
        helper: keeps the memory that a load needs beside its tensors, see ``init_io_helper``.
        use_pinmem: what goes to a device passes through page-locked memory of the device's own
            allocator, and is copied while more is read; without it, through ordinary memory. It
            takes up to ``helper.capacity()`` bytes, whatever the size of the file. May not change
            from one use of a helper to the next. No effect where there is no accelerator.
        use_direct_io: the same as ``way="direct"``.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``.
        state_dict: tensors to be filled in place, wherever they are, whatever ``map_location``:
            the names of the file, the same dtypes, contiguous and at least as large. Nothing is
            written unless all fit, and nothing is converted. A tensor that has aliases needs one of
            its names there.
        way: how the bytes come: ``"map"``, ``"read"`` through the page cache, ``"direct"`` past it,
            ``"uring"`` the same with io_uring, or ``"auto"``. None asks the variable
            ``VETURBOIO_WAY``, and chooses where that says nothing either. Where the system refuses
            ``"uring"`` or ``"direct"``, the next of ``"direct"`` and ``"read"`` is taken, and
            ``"read"`` where it refuses ``"map"``.
        names: the tensors wanted, in the order in which they are returned; those of a PyTorch file
            by the names that lead to them, joined by dots. Only they are read, and
            what shares a storage with them.
        slices: of some tensors only a part, as ``{"weight": slice(0, 128)}`` along the first
            dimension or ``{"weight": (slice(None), slice(0, 128))}`` along others. The result is
            that of ``tensor[...]``: slices may have a step, ``...`` stands for the dimensions
            between, and an integer takes its dimension away. Other indices are refused. Only that
            part is read, and what lies between two rows of it if that is less than 16 KiB. Such a
            tensor is contiguous and has a storage of its own. One that a PyTorch file has in
            another than row-major order is read whole.
        progress: called with bytes done and bytes in all while they move, on another thread; True
            draws a bar.
        dtype: what tensors of floating point are converted to, on their device and on their way,
            without a second copy of the whole. Others stay as they are.
        one_allocation: one piece of memory for all tensors on a device, which is given back when
            the last of them goes. By default each has its own.
        storage_options: options of the store that ``file`` is an address of, by the names of the
            variables of its own tools in lower case, such as ``aws_endpoint_url``. They precede the
            environment, and no message shows them.
        cache_dir: a directory in which downloaded objects are kept for the next load, by version.
        weights_only: True and None are what is always done: no pickle is run. False is refused.
        mmap: True is ``way="map"``, False is ``way="read"``, and None chooses.
        restore_aliases: whether names that a safetensors file keeps in its metadata for a stored
            tensor, as it does for tied weights, come back as that tensor. Files of ``save_file``
            say which entries are aliases. In others an entry is one if its key is no tensor of the
            file and not ``format``, and its value is a tensor of the file: a name that was a part
            of that tensor comes back as the whole. False returns the stored names alone.
        skip_unknown: True puts a :class:`veturboio.Unknown` where a PyTorch file has an object of a
            class or function that is not known, instead of refusing the file or having torch.load
            read it. The stand-in holds what the object would have been made of; the names of
            tensors lead through it: those of a pickled ``torch.nn.Module`` are those of its
            state_dict. A tensor of a subclass comes as a plain one. Nothing of the file is run.

    Returns:
        The tensors of a safetensors file by name, in the order of the file, then the aliases. What
        torch.load returns for a PyTorch file; of a TorchScript archive, and with ``names`` or
        ``slices``, its tensors by name.

    Raises:
        FormatError: the file is malformed, holds a dtype that torch does not have, or is a
            PyTorch file that torch.load refuses too.
        TypeError: ``file`` is nothing to read from, or is open as text.
        OSError: the system refuses the file; the class follows the errno.
        ArgumentError: a ValueError: ``num_thread`` is less than 1, ``use_pinmem`` is not what the
            helper was used with, or ``state_dict`` or ``map_location`` does not fit the file; the
            message names the tensor.
        torch.OutOfMemoryError: a device has no memory for a tensor, which the message names. What
            was taken is given back.
        RuntimeError: there is no such device, or it failed.
        NotImplementedError: a parameter asks for what does not exist yet.
    """
    refuse("use_cipher", wants_cipher(use_cipher))
    with opened(file) as path:
        check_weights_only(path, weights_only)
        options: dict[str, Any] = {
            "num_thread": num_thread if enable_fast_mode else min(num_thread, 1),
            "use_direct_io": use_direct_io,
            "use_pinmem": use_pinmem,
            "helper": helper,
            "way": way_of(path, way, mmap, use_direct_io),
            "storage_options": storage_options_of(storage_options),
            "cache_dir": None if cache_dir is None else os.fsdecode(cache_dir),
            "restore_aliases": restore_aliases,
            "skip_unknown": skip_unknown,
            **as_options(path, names, slices),
        }
        if state_dict is not None:
            check_mapping(path, "state_dict", state_dict, torch.Tensor, action="load")
            if dtype is not None:
                reason = "state_dict cannot be combined with dtype"
                raise ArgumentError(f"load {_ops.printable(path)}: {reason}")
        with watched(progress) as counters:
            wanted = Wanted(map_location, state_dict, dtype, one_allocation, counters, options)
            return _load(path, wanted)


def _load(path: str, wanted: Wanted) -> dict[str, torch.Tensor]:
    """Load by the core, or by torch where the core does not know a name that the file uses."""
    try:
        return _natively(path, wanted)
    except UnknownNameError:
        pass
    with pinned(path, wanted.options) as file:
        try:
            # The file may have been replaced meanwhile. What torch reads is what the core has
            # found well formed.
            return _natively(file, wanted)
        except UnknownNameError as error:
            refused = error.with_traceback(None)
        return cast("dict[str, torch.Tensor]", _fallback.load(file, wanted, refused))


def _natively(path: str, wanted: Wanted) -> dict[str, torch.Tensor]:
    options = wanted.options
    if wanted.state_dict is not None:
        _ops.fill(path, wanted.state_dict, progress=wanted.progress, **options)
        return dict(wanted.state_dict)
    if not place.needs_header(wanted.map_location):
        return _placed(path, wanted, {})
    described = {"num_thread", "storage_options", "cache_dir", "restore_aliases", "skip_unknown"}
    described |= {"names", "slices"}
    with held(path) as file:  # which is read twice
        return _placed(file, wanted, {name: options[name] for name in described & options.keys()})


def _placed(path: str, wanted: Wanted, described: dict[str, Any]) -> dict[str, torch.Tensor]:
    left = _VERSIONS
    while True:
        left -= 1
        placed = place.as_options(path, wanted.map_location, **described)
        try:
            loaded = _ops.load(
                path,
                progress=wanted.progress,
                dtype=wanted.dtype,
                one_allocation=wanted.one_allocation,
                **wanted.options,
                **placed,
            )
            return cast("dict[str, torch.Tensor]", loaded)
        except OSError as error:
            # It was replaced or written since its header was asked where its tensors belong.
            if error.errno != errno.ESTALE or "version" not in placed or not left:
                raise


def explain(
    file: File,
    num_thread: int = 32,
    use_direct_io: bool = False,
    way: str | None = None,
    names: Iterable[str] | None = None,
    slices: Slices | None = None,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: FilePath | None = None,
    restore_aliases: bool = True,
    skip_unknown: bool = False,
) -> str:
    """Say in a sentence which way ``load`` would take, and why.

    The parameters and errors are those of ``load``. Nothing but the header is read.

    >>> veturboio.explain("model.safetensors")
    'model.safetensors: map, 2148880384 bytes mapped and populated, 2 at a time, because the page
    cache holds 100% of it'
    """
    with opened(file) as path:
        try:
            return _ops.explain(
                path,
                num_thread=num_thread,
                use_direct_io=use_direct_io,
                way=way,
                storage_options=storage_options_of(storage_options),
                cache_dir=None if cache_dir is None else os.fsdecode(cache_dir),
                restore_aliases=restore_aliases,
                skip_unknown=skip_unknown,
                **as_options(path, names, slices),
            )
        except UnknownNameError as error:
            return _fallback.explained(path, error)


def save_file(
    state_dict: Mapping[str, torch.Tensor],
    file: FilePath,
    force_contiguous: bool = True,
    force_save_shared_tensor: bool = False,
    force_clone_shared_tensor: bool = False,
    metadata: Mapping[str, str] | None = None,
    use_cipher: bool | None = False,
    helper: Any = None,
    enable_fast_mode: bool = False,
    durable: bool = True,
    wait: bool = True,
    progress: Progress | None = None,
    overwrite: bool = True,
    storage_options: Mapping[str, str] | None = None,
) -> Save | None:
    """Save a state_dict as a safetensors file.

    The bytes go to a temporary sibling that takes the file's place once it is whole and on the
    disk: whatever fails, the old file stays as it was. The caller's dict is not changed. A large
    file is written past the page cache, and the next load finds it on the disk.

    A file that is replaced passes on its mode, owner, group, access control list and extended
    attributes, as far as the user may set them. Its other names (hard links) keep what it was, and
    a warning says so. A file that can be written but not replaced (a mount point, somebody else's
    in a sticky directory, one in a directory without the right to write) is written in place once
    all bytes are on this machine, beside it or in ``TMPDIR``: a warning says so, since a crash
    meanwhile leaves it damaged.

    Of several saves of a process to one target, whatever it is called, the last one called
    remains, also where an earlier one goes on in the background and ends later: that one then ends
    well without writing, or with FileExistsError under ``overwrite=False``.

    Args:
        state_dict: tensors by name.
        file: path of the file, or the address of an object, which appears whole or not at all
            too.
        force_contiguous: False refuses tensors that are not contiguous.
        force_save_shared_tensor: tensors that are the same view of the same memory are stored
            once, under the name that comes first in ``state_dict``, and the other names as aliases
            that ``load`` restores. Tensors that overlap otherwise are each stored in full.
        force_clone_shared_tensor: with ``force_save_shared_tensor``, tensors that share memory are
            each stored in full.
        metadata: free-form strings to keep in the file. ``format`` is set to ``"pt"`` unless it is
            given. A file without metadata and aliases has no ``__metadata__``.
        use_cipher: not implemented yet; None asks the variable ``VETURBOIO_USE_CIPHER``, and
            so does False, since a plain file is not what that variable asks for.
        helper: keeps the memory in which small and non-contiguous tensors are gathered, see
            ``init_io_helper``.
        enable_fast_mode: there is one mode, and it is fast; both values do the same.
        durable: False leaves it to the system when the bytes come to the disk. The file still
            takes its place in one step, but a crash of the system may damage it.
        wait: False copies the tensors, which takes as much memory as they span, and writes the
            copy in the background. The tensors may then be changed at once.
        progress: called with bytes done and bytes in all while they move, on another thread; True
            draws a bar.
        overwrite: False refuses to replace a file or an object, whoever makes it meanwhile.
        storage_options: as for ``load``.

    Returns:
        None; with ``wait=False`` a ``concurrent.futures.Future`` whose ``result()`` waits for the
        file and raises what went wrong. The interpreter does not end before the file is written,
        and says on standard error if that failed and nobody asked.

    Raises:
        ArgumentError: a ValueError: tensors share memory and no force is set, or a tensor cannot be
            stored; the message names them.
        TypeError: a value is not a tensor.
        OSError: the system refuses the file; the class follows the errno.
        NotImplementedError: a parameter asks for what does not exist yet.
    """
    refuse("use_cipher", wants_cipher(use_cipher or None))
    path = os.fsdecode(file)
    check_mapping(path, "state_dict", state_dict, torch.Tensor)
    refuse_uninitialized(path, state_dict)
    if metadata is not None:
        check_mapping(path, "metadata", metadata, str)
    options = {
        "metadata": None if metadata is None else dict(metadata),
        "force_contiguous": force_contiguous,
        "force_save_shared_tensor": force_save_shared_tensor,
        "force_clone_shared_tensor": force_clone_shared_tensor,
        "helper": helper,
        "durable": durable,
        "overwrite": overwrite,
        "storage_options": storage_options_of(storage_options),
    }

    def save(tensors: Mapping[str, torch.Tensor], ticket: Any = None) -> None:
        with watched(progress) as counters:
            _ops.save(tensors, path, progress=counters, ticket=ticket, **options)

    if wait:
        save(state_dict)
        return None
    ticket = _ops.save_ticket()
    # Where that is now, wherever the program goes meanwhile.
    if path and not is_address(path) and not os.path.isabs(path):  # noqa: PTH117
        try:
            # Joined as text, which keeps a slash at the end.
            path = Located(os.path.join(os.getcwd(), path), path)  # noqa: PTH109, PTH118
        except FileNotFoundError:  # the directory was removed: the core says so
            return done(partial(save, dict(state_dict), ticket))
    copies = snapshot(state_dict)
    if copies is None:
        # Refused now, in the words of a save that is waited for: what cannot be copied may have
        # become something else when a thread comes to it.
        return done(partial(save, dict(state_dict), ticket))
    return start(partial(save, copies, ticket))


def metadata(file: File, storage_options: Mapping[str, str] | None = None) -> dict[str, str]:
    """Read the free-form strings that were saved with a safetensors file.

    Entries by which ``save_file`` marks aliases are left out; a file of another writer is shown as
    it is.

    Raises:
        FormatError: the file is malformed.
        OSError: the system refuses the file; the class follows the errno.
    """
    with opened(file) as path:
        return _ops.metadata(path, storage_options=storage_options_of(storage_options))
