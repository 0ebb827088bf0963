"""Connect to a Ray cluster, submit sweeps as jobs, and list the processes to scrape."""
