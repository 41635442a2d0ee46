"""TensorBoard's event files: torchtitan, Megatron-LM and Hugging Face's Trainer write them."""

from __future__ import annotations

import struct
from pathlib import Path

from decaylaws.errors import DataError, MissingExtraError
from decaylaws.runs.logs.log import Log
from decaylaws.runs.logs.names import Names
from decaylaws.runs.logs.points import renamed


def read_events(path: Path, names: Names) -> list[Log]:
    """The scalars of an event file; the run is the one that the file's path names.

    Args:
        path: a file ``events.out.tfevents...``.
        names: what we call its tags.

    Raises:
        MissingExtraError: the package tensorboard is not installed.
        DataError: the file is damaged.
        SchemaError: two tags have the same meaning.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util
    except ImportError:
        raise MissingExtraError("Reading TensorBoard's event files", "tensorboard") from None
    scalars: list[tuple[int, str, float]] = []
    begun = (
        False  # the first event of a file says its version; TensorBoard reads a damaged file as an empty one
    )
    try:
        for event in EventFileLoader(str(path)).Load():
            begun = True
            for value in event.summary.value:
                number = tensor_util.make_ndarray(value.tensor)
                if number.shape == () and number.dtype.kind in "fiu":
                    scalars.append((int(event.step), value.tag, float(number)))
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise DataError(f"{path} is not an event file of TensorBoard: {error}") from None
    if not begun:
        raise DataError(f"{path} is not an event file of TensorBoard: it holds no event.")
    ours = renamed(list(dict.fromkeys(tag for _, tag, _ in scalars)), names, path)
    points = tuple({"step": step, ours[tag]: value} for step, tag, value in scalars if tag in ours)
    return [Log(str(path), path, points)] if points else []
