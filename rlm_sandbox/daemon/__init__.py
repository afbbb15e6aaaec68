"""The broker daemon: a control socket in front of the sessions, and its client."""
