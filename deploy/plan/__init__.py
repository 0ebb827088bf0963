"""Plan a sweep: its file, its SAEs and passes, its record and its state in the bucket."""
