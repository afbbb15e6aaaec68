"""The demo: a large log with planted incidents, and the run that finds and counts them."""
