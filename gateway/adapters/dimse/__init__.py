"""Nodes that speak DIMSE (PS3.7). The only place, with the simulators, that knows pynetdicom."""

from gateway.adapters.dimse.adapter import DimseAdapter
from gateway.adapters.dimse.storage_scp import StorageReceiver

__all__ = ["DimseAdapter", "StorageReceiver"]
