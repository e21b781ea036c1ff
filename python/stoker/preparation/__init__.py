"""From raw data to token shards."""

from stoker.preparation.engines import Engine
from stoker.preparation.job import Job
from stoker.preparation.part_writer import Counts
from stoker.preparation.pipeline import prepare
from stoker.preparation.sources import Part, find_parts

__all__ = ["Counts", "Engine", "Job", "Part", "find_parts", "prepare"]
