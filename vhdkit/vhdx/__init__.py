"""The VHDX format, which AVHDX files have as well: read only."""
