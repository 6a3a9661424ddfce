"""Pipelines: order, retries, schedules and parameters; the command line."""
