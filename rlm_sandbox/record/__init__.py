"""What becomes of a recorded run: bundles, statements, reports, comparisons, history. Reads sessions; starts none but for a replay."""
