"""Decide what a merge will do, with plain values and arrays: nothing is written."""
