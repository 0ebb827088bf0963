"""Plan a sweep: its file, SAEs, passes, record and state in the bucket."""
