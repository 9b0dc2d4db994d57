"""The vendors' own price lists, read live into the form of the price file; nothing here writes one."""

from cost.refresh.fetch import NotSetUp, RefreshError
from cost.refresh.sources import SOURCES, Readout, Settings, read_source

__all__ = ["SOURCES", "NotSetUp", "Readout", "RefreshError", "Settings", "read_source"]
