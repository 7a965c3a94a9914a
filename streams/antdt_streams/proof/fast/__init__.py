"""Many entries of a log at once, by columns. The one place in the cores that knows numpy."""
