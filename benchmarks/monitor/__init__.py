"""Watching what serves: false alarms, time to detect, the way back, and what the reference server costs."""
