"""Items that are looked up as those of a numpy array are."""

from __future__ import annotations

from typing import Any

import numpy as np


class Array:
    """A read-only list whose items are looked up by a number, a slice, or lists and arrays of such.

    A class that has it as a base provides `size` and `get_item`.
    """

    @property
    def size(self) -> int:
        """The number of items."""
        raise NotImplementedError

    def get_item(self, sample_id: int) -> Any:
        """The item of a number within [0, size)."""
        raise NotImplementedError

    def __getitem__(self, at: Any) -> Any:
        """Looks items up.

        Args:
            at: A number, negative ones counted from the end; or a slice, or a list or array of any of these, whose
                parts are looked up one by one.

        Returns:
            The item, or a list of what the parts give.

        Raises:
            IndexError: There is no such item.
            ValueError: It is none of these.
        """
        if isinstance(at, (int, np.integer)):
            number = int(at)
            return self.get_item(number + self.size if -self.size <= number < 0 else number)
        if isinstance(at, slice):
            return [self.get_item(number) for number in range(*at.indices(self.size))]
        if isinstance(at, (list, np.ndarray)):
            return [self[part] for part in at]
        raise ValueError(f"Unsupported argument type passed to __getitem__: {type(at)}.")
