"""Draw a sweep's plots and render its HTML report."""
