"""From raw data to token shards."""

from stoker.preparation.part_writer import Counts
from stoker.preparation.pipeline import prepare
from stoker.preparation.sources import Part, find_parts

__all__ = ["Counts", "Part", "find_parts", "prepare"]
