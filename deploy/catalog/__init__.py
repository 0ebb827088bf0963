"""Read and tidy what a bucket holds: status, listing, report, exchange, clean."""
