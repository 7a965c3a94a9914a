"""Samples loaded ahead by processes of their own. Knows data sets and processes; neither leases nor Kafka."""

from __future__ import annotations

from antdt.data.loading.loader import InThread, Loader, Loading, LoadingOptions, loader_of
from antdt.data.loading.pool import DataProcessDied, SampleFailed

__all__ = ["DataProcessDied", "InThread", "Loader", "Loading", "LoadingOptions", "SampleFailed", "loader_of"]
