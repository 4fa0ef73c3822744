"""Chains for other programs: as a network block device, and as files of a mounted folder."""
