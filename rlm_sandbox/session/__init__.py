"""Sessions: one container, one account, one journal, one cell at a time."""
