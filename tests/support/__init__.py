"""Helpers for the tests: memory, peers in other processes, deadlines."""
