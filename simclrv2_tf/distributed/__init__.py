"""Devices, and collectives between replicas."""
