"""Serve a bucket to a browser: REST, a live stream and a page."""
