"""Devices and the collectives between replicas."""
