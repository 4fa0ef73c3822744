"""Bytes to frozen records and back; arrays to arrays. No files, no clock, no threads."""
