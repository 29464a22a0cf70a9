"""Optimizers, parameter groups, schedules and weight averaging."""
