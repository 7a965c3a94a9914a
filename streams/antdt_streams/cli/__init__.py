"""The command line: data on stdout, the rest on stderr, exit codes of the error tree."""
