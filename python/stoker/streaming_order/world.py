"""The nodes, ranks and workers that an order is made for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stoker.options import check_index


@dataclass(frozen=True)
class World:
    """Nodes, ranks and workers, as MosaicML Streaming counts them (`streaming/base/world.py`).

    Attributes:
        nodes: Physical nodes.
        ranks_per_node: Ranks on each.
        workers_per_rank: Workers of a rank's DataLoader; 1 where the rank reads for itself. Makes no difference to the
            order of a rank: its batch i comes from worker i modulo this.
        replication: Ranks of the trainer that share each of these ranks, and so its samples.

    Raises:
        ValueError: One of them is not a whole number of at least 1.
    """

    nodes: int
    ranks_per_node: int
    workers_per_rank: int = 1
    replication: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, check_index(field.name, getattr(self, field.name), 1, (1 << 31) - 1))

    @classmethod
    def replicated(cls, replication: int, num_ranks: int, *, ranks_per_node: int, workers_per_rank: int = 1) -> World:
        """Makes the world in which every `replication` neighbouring ranks of the trainer are one.

        Args:
            replication: Ranks that get the same samples; 1 for none.
            num_ranks: Ranks of the trainer over all nodes.
            ranks_per_node: Ranks of the trainer on a node.
            workers_per_rank: As of `World`.

        Raises:
            ValueError: `replication` is not positive, or does not divide `num_ranks`; or the ranks are no whole nodes.
        """
        if replication <= 0:
            raise ValueError(f"Replication factor must be positive. It is {replication}.")
        if num_ranks % replication:
            raise ValueError(
                f"World size must be divisible by your replication factor. {replication} does not divide {num_ranks}."
            )
        if num_ranks % ranks_per_node:
            raise ValueError(f"{num_ranks} ranks are no whole nodes of {ranks_per_node} ranks: check ranks_per_node.")
        ranks = num_ranks // replication
        nodes = ranks // ranks_per_node if ranks % ranks_per_node == 0 else 1
        return cls(nodes, ranks // nodes, workers_per_rank, replication)

    @property
    def num_ranks(self) -> int:
        """Ranks with samples of their own."""
        return self.nodes * self.ranks_per_node
