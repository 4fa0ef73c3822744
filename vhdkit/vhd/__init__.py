"""The VHD format: its records, and one image by itself - reading, checking, writing, creating."""
