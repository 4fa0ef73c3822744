"""The tree of a machine's snapshots, and the pending merges that deletions leave."""
