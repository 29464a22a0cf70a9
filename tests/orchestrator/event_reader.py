"""TensorBoard's own reader of a run's event files."""

from __future__ import annotations

from pathlib import Path

Curve = list[tuple[int, float]]


def curves_in(folder: Path) -> dict[str, Curve]:
    """Step and value by tag, everything that is in the files, in the order in which it is read."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
