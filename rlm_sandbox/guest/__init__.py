"""What runs inside the container: the agent (PID 1) and the kernel (untrusted cells). Standard library and ``wire`` only.

Nothing here is trusted by the host. The agent is written to stay correct against a hostile kernel; the kernel is written to
stay comfortable for an honest cell, and merely harmless for a dishonest one.
"""
