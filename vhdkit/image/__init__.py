"""One image by itself: reading its structures, resolving ranges, writing sectors, creating files."""
