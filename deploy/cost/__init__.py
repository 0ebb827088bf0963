"""Estimate what a sweep costs."""
