"""The skill for Claude Code: where its files are, how they get to the client, and the rules the client asks for."""
