"""Ray Data's internals that `data.ray_data` uses: an upgrade of Ray that lacks them fails here first."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data import DataContext

from data import ray_data
from data.errors import MantaError, ShardChangedError
from data.ray_data import ordered_block_refs, rows_in_order, use_ordered_quiet_data
from data.shards.manifest import Unit
from tests.ray_contract import assert_ray_has

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]

SETTINGS = ["enable_progress_bars", "print_on_execution_start", "target_max_block_size"]


def test_ray_data_still_has_the_method() -> None:
    assert_ray_has("ray.data.Dataset.iter_internal_ref_bundles")


@pytest.mark.parametrize("name", SETTINGS)
def test_ray_data_still_has_the_setting(name: str) -> None:
    assert name in DataContext.__dataclass_fields__, f"setting DataContext.{name} would do nothing"


def test_ray_data_still_has_the_setting_for_order() -> None:
    assert "preserve_order" in inspect.signature(ray.data.ExecutionOptions).parameters


def unit(ordinal: int) -> Unit:
    return Unit(ordinal, ordinal, 0, f"/{ordinal}.txt", 100, "etag", unit_bytes=100, row_group=None)


def row(unit: Unit, pid: int) -> pa.Table:
    return pa.table({"ordinal": [unit.ordinal], "pid": [pid]})


@pytest.fixture
def data_context() -> Iterator[DataContext]:
    """This process's Ray Data settings, restored after the test."""
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in SETTINGS}
    order = context.execution_options.preserve_order
    yield context
    for name, value in before.items():
        setattr(context, name, value)
    context.execution_options.preserve_order = order


@pytest.mark.usefixtures("ray_cluster_small")
class TestWithACluster:
    def test_blocks_arrive_in_order_one_per_item_though_the_first_is_finished_last(
        self, tmp_path: Path, data_context: DataContext
    ) -> None:
        def finish_backwards(batch: pa.Table) -> pa.Table:
            item = batch["item"][0].as_py()
            while item < 3 and not (tmp_path / str(item + 1)).exists():
                Event().wait(0.02)
            (tmp_path / str(item)).touch()
            return pa.table({"item": [item] * (item + 1)})

        use_ordered_quiet_data()
        dataset = ray.data.from_items([{"item": item} for item in range(4)], override_num_blocks=4)
        refs = list(ordered_block_refs(dataset.map_batches(finish_backwards, batch_size=None, batch_format="pyarrow")))
        assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
        blocks = [block["item"].to_pylist() for block in ray.get(refs, timeout=60)]
        assert blocks == [[0], [1, 1], [2, 2, 2], [3, 3, 3, 3]]

    def test_a_block_is_never_split_by_its_size(self, data_context: DataContext) -> None:
        def three_megabytes(_: pa.Table) -> pa.Table:
            return pa.table({"row": [np.zeros(1 << 20, np.uint8).tobytes()] * 3})

        def blocks() -> int:
            dataset = ray.data.from_items([{"item": 0}], override_num_blocks=1)
            mapped = dataset.map_batches(three_megabytes, batch_size=None, batch_format="pyarrow")
            return len(list(ordered_block_refs(mapped)))

        data_context.target_max_block_size = 1 << 20
        assert blocks() > 1  # this is what would break "one block, one unit"
        use_ordered_quiet_data()
        assert blocks() == 1

    def test_an_iteration_can_be_closed_early(self, data_context: DataContext) -> None:
        use_ordered_quiet_data()
        refs = ordered_block_refs(ray.data.from_items(list(range(8)), override_num_blocks=8))
        assert ray.get(next(refs), timeout=60).num_rows == 1
        refs.close()

    @pytest.mark.parametrize("small_bytes", [0, 1000], ids=["in tasks", "in this process"])
    def test_rows_are_the_same_wherever_they_are_made(
        self, small_bytes: int, data_context: DataContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_data, "SMALL_BYTES", small_bytes)
        asked: list[str] = []

        def load(unit: Unit) -> pa.Table | None:
            return row(unit, os.getpid()) if unit.ordinal % 3 == 0 else None

        def make(unit: Unit) -> pa.Table:
            return row(unit, os.getpid())

        rows = list(rows_in_order([unit(ordinal) for ordinal in range(8)], load, make, lambda: asked.append("ray")))
        assert [each["ordinal"][0].as_py() for each in rows] == list(range(8))
        elsewhere = {each["pid"][0].as_py() for each in rows} - {os.getpid()}
        assert (bool(elsewhere), asked) == ((True, ["ray"]) if small_bytes == 0 else (False, []))

    @pytest.mark.parametrize("small_bytes", [0, 1000], ids=["in tasks", "in this process"])
    def test_an_error_comes_after_the_rows_before_it_with_its_class_and_words(
        self, small_bytes: int, data_context: DataContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ray_data, "SMALL_BYTES", small_bytes)

        def make(unit: Unit) -> pa.Table:
            if unit.ordinal == 2:
                raise ShardChangedError("shard 2 is gone")
            return row(unit, 0)

        made = rows_in_order([unit(ordinal) for ordinal in range(4)], lambda _: None, make, lambda: None)
        assert [next(made)["ordinal"][0].as_py() for _ in range(2)] == [0, 1]
        with pytest.raises(ShardChangedError, match="shard 2 is gone") as caught:
            next(made)
        assert isinstance(caught.value, MantaError)
