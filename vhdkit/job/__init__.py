"""A merge as a job: run beside the caller or in a process of its own, asked about and steered from any process."""
