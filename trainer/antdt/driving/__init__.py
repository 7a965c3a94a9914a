"""What carries out the life of a worker in a real process: connection, files, memory, what SIGTERM means."""
