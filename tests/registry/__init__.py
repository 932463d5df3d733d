"""Runs, models and the queues."""
