"""What is wrong with this host and how to fix it, and whether the sandbox holds on this very engine."""
