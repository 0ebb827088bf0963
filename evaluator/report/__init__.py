"""The report: draw a sweep's plots and render its HTML page."""
