"""Lineage: where a pair came from and went, what differs between two versions, take-downs. Reads from all stages."""
