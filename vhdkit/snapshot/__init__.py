"""The tree of a machine's snapshots, and what its deletions still owe in merges."""
