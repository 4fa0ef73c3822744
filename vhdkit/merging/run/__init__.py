"""Carry out a plan, in the order of writes that the engine documents."""
