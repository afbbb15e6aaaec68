"""The channel's grammar, shared by host and guest: frames, messages and state tables, without any I/O.

Only the standard library is imported here, because the same files are copied into the image.
"""

PROTOCOL_VERSION = 2
"""Raised by one whenever a frame, a message or a state table changes meaning. Host and image must agree."""
