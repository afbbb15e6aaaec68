"""The command line: arguments in, one document out."""
