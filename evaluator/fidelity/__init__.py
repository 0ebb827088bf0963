"""Measure each checkpoint's FVU, L0 and spliced loss, and keep the results."""
