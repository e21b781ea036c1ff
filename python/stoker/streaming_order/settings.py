"""What MosaicML Streaming's order depends on besides streams, batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from stoker.options import check_index


@dataclass(frozen=True, kw_only=True)
class StreamingSettings:
    """MosaicML Streaming's order of samples, with LLM Foundry's way of packing them; for `DataLoader(order=...)`.

    The attributes up to `ranks_per_node` are arguments of MosaicML Streaming's StreamingDataset with their defaults
    there; `StreamingOrder` says what they mean.

    Attributes:
        ranks_per_node: Ranks of the trainer on a node, of which the default of num_canonical_nodes and the order
            depend. Default: as the reference finds it, `$LOCAL_WORLD_SIZE`, else 1.
        num_packers: Workers of the DataLoader whose rows are to be had: each packs by itself, batch after batch in
            turn. No workers are one packer.
        packers_persist: Whether packers keep what they have left over at the end of an epoch, as workers do that
            persist, and as a DataLoader without workers does.

    Raises:
        ValueError: A number is not a whole number in its range.
    """

    shuffle_algo: str = "py1e"
    shuffle_block_size: int | None = None
    num_canonical_nodes: int | None = None
    partition_algo: str = "relaxed"
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    batching_method: str = "random"
    ranks_per_node: int | None = None
    num_packers: int = 1
    packers_persist: bool = True

    @property
    def of_order(self) -> dict[str, Any]:
        """What `StreamingOrder` takes of it."""
        apart = ("ranks_per_node", "num_packers", "packers_persist")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}

    def __post_init__(self) -> None:
        if self.ranks_per_node is not None:
            check_index("ranks_per_node", self.ranks_per_node, 1, (1 << 31) - 1)
        check_index("num_packers", self.num_packers, 1, 1024)
