"""Files inside of a disk: what is in its partitions, read through its chain by The Sleuth Kit (pytsk3)."""
