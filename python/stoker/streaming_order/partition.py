"""How an epoch is dealt to nodes, ranks and batches: MosaicML Streaming's partition algorithms in closed form.

Samples are dealt in *turns*. Turn x of an epoch goes to one device whatever the number of devices is, and global
batch b is the turns [b*G, (b+1)*G), G its size. Nothing here is an array over samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

PARTITION_ALGOS = ("orig", "relaxed")


@dataclass(frozen=True)
class Grid:
    """The devices that share a global batch, and how many samples each has of it."""

    nodes: int
    ranks_per_node: int
    batch_size: int

    @property
    def global_batch(self) -> int:
        """Samples of a global batch, G."""
        return self.nodes * self.ranks_per_node * self.batch_size

    def turns(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The turns, within a global batch, of places in it: node by node, in it rank by rank, in it in batch order."""
        devices, places = np.divmod(columns, self.batch_size)
        nodes, ranks = np.divmod(devices, self.ranks_per_node)
        return (places * self.ranks_per_node + ranks) * self.nodes + nodes


@dataclass(frozen=True)
class Partition:
    """What is dealt at each turn, as `get_partitions_orig` has it.

    Canonical node c holds the draws from floor(c*N/C) on. The turns go round the canonical nodes. So that all devices
    get the same number, some draws come twice.

    Attributes:
        num_draws: Draws of the epoch, N.
        canonical_nodes: Parts of the epoch, C.
        nodes: Physical nodes; a multiple of C or a divisor.
        ranks_per_node: Ranks on each.
        drop_first: Turns that were dealt before.

    Raises:
        ValueError: Neither of C and `nodes` divides the other, there are no draws, or too few to fill the nodes with.
    """

    num_draws: int
    canonical_nodes: int
    nodes: int
    ranks_per_node: int
    drop_first: int = 0

    def __post_init__(self) -> None:
        if self.canonical_nodes % self.nodes and self.nodes % self.canonical_nodes:
            raise ValueError(
                "Either canonical or physical nodes must be evenly divisible by the other, otherwise striping slices "
                "of shards over nodes may lead to each node downloading all shards. There are "
                f"{self.canonical_nodes} canonical and {self.nodes} physical nodes."
            )
        if self.drop_first % self.nodes:
            warnings.warn(
                "`drop_first` was not divisible by `num_physical_nodes`. Rounding it down to make it divisible.",
                stacklevel=2,
            )
            object.__setattr__(self, "drop_first", self.drop_first - self.drop_first % self.nodes)
        if self.num_draws == 0:
            raise ValueError("there are no samples to deal: choose at least one.")
        if self._tiled:
            warnings.warn(
                f"Trying to partition {self.num_draws} samples over {self.canonical_nodes} canonical nodes. This will "
                "result in many samples being repeated, and depending on your batching method, batches being "
                "completely dropped. Check if your dataset has the expected number of samples, and consider "
                "decreasing the number of canonical nodes.",
                stacklevel=2,
            )
        elif self._padding and self._padding_source[1] not in (1, self._padding):
            raise ValueError(
                f"{self.num_draws} samples are too few to deal from {self.canonical_nodes} canonical nodes to "
                f"{self.nodes} nodes: use as many canonical nodes as nodes."
            )
        if self._lacking and self.ranks_per_node + self._lacking - 1 > self._per_node:
            warnings.warn(
                f"Attempting to partition {self._per_node} samples per physical node over {self.ranks_per_node} gpus. "
                "This will result in many samples being repeated, and depending on your batching method, batches "
                "being completely dropped. Check if your dataset has the expected number of samples.",
                stacklevel=2,
            )

    @property
    def size(self) -> int:
        """The number of turns; the same for each device."""
        return (self._per_node + self._lacking) * self.nodes

    def draws(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is dealt at each of these turns, all within [0, size); same shape."""
        if turns.size and int(turns.max()) >= self._per_node * self.nodes:
            turns = self._fill_ranks(turns)
        turns = turns + self.drop_first
        places = turns // self.canonical_nodes
        canonical = turns - places * self.canonical_nodes
        draws: NDArray[np.int64]
        if self._tiled:
            draws = (canonical * (self._per_canonical + self._padding) + places) % self.num_draws
            return draws
        if places.size and int(places.max()) >= self._per_canonical - 1:
            places = self._fill_canonical(canonical, places)
        draws = self._begins[canonical] + places
        return draws

    def _fill_ranks(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turns behind a node's last one become turns before it."""
        of_node, nodes = np.divmod(turns, self.nodes)
        behind = of_node - self._per_node
        if self.ranks_per_node + self._lacking - 1 <= self._per_node:
            source = behind + (self._per_node - self.ranks_per_node - self._lacking + 1)
        else:
            source = behind % self._per_node
        return np.where(behind >= 0, source, of_node) * self.nodes + nodes

    def _fill_canonical(self, canonical: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places behind a canonical node's last one become places before it."""
        last = self._per_canonical - 1
        short = np.diff(self._begins, append=self.num_draws)[canonical] <= last
        filled: NDArray[np.int64] = places - (short & (places == last))
        if self._padding:
            begin, length = self._padding_source
            source = begin + (places - self._per_canonical if length > 1 else np.zeros_like(places))
            filled = np.where(places > last, source, filled)
        return filled

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        begins: NDArray[np.int64] = np.arange(self.canonical_nodes) * self.num_draws // self.canonical_nodes
        return begins

    @property
    def _tiled(self) -> bool:
        """Whether there are too few samples for a part for each canonical node."""
        if self.canonical_nodes >= self.nodes:
            return self.num_draws < self.canonical_nodes
        return self.num_draws <= self.canonical_nodes

    @property
    def _per_canonical(self) -> int:
        return -(-self.num_draws // self.canonical_nodes)

    @property
    def _ratio(self) -> int:
        return max(1, self.nodes // self.canonical_nodes)

    @property
    def _padding(self) -> int:
        """What a canonical node needs to fill the nodes that read from it."""
        return -self._per_canonical % self._ratio

    @property
    def _padding_source(self) -> tuple[int, int]:
        """Where the padding is copied from: place and length."""
        end = self._per_canonical - self._ratio + 1
        begin = max(0, end - self._padding)
        return begin, max(0, end) - begin

    @property
    def _per_node(self) -> int:
        """What a node is dealt before its ranks are made even."""
        dealt = self.canonical_nodes * (self._per_canonical + self._padding) - self.drop_first
        return max(0, dealt) // self.nodes

    @property
    def _lacking(self) -> int:
        """What a node lacks to make its ranks even."""
        return -self._per_node % self.ranks_per_node


def deal(
    algo: str,
    num_draws: int,
    *,
    canonical_nodes: int,
    grid: Grid,
    drop_first: int = 0,
    initial_nodes: int | None = None,
) -> tuple[Partition, Grid]:
    """Deals the draws of an epoch to the devices of a grid, as `get_partitions` does.

    Args:
        algo: "orig", or "relaxed", which deals to the devices that a run began with where the nodes at hand do not
            go with the canonical nodes.
        num_draws: Draws of the epoch.
        canonical_nodes: Parts of the epoch.
        grid: The devices at hand.
        drop_first: Samples that were delivered before.
        initial_nodes: Physical nodes that the run began with; None: those at hand.

    Returns:
        partition: What is dealt at each turn.
        grid: The devices that it is dealt to; its global batch is that of the devices at hand.

    Raises:
        ValueError: More is dropped than there is, or the nodes do not go together (see `Partition`), or the global
            batch not with the initial nodes.
    """
    devices = grid.nodes * grid.ranks_per_node
    if num_draws + devices - num_draws % devices < drop_first:
        raise ValueError(f"Resuming further into the dataset ({drop_first}) than it has samples ({num_draws})")
    fits = canonical_nodes % grid.nodes == 0 or grid.nodes % canonical_nodes == 0
    if algo == "relaxed" and initial_nodes is not None and not fits:
        initial_devices = initial_nodes * grid.ranks_per_node
        if grid.global_batch % initial_devices:
            raise ValueError(
                f"A global batch size of {grid.global_batch} is not evenly divisible by the initial total number of "
                f"devices of {initial_devices}. Make sure that when using the `relaxed` partitioning algorithm, the "
                "global batch size does not change during resumption of training."
            )
        grid = Grid(initial_nodes, grid.ranks_per_node, grid.global_batch // initial_devices)
    return Partition(num_draws, canonical_nodes, grid.nodes, grid.ranks_per_node, drop_first), grid
