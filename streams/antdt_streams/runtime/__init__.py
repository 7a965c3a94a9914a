"""The one runtime of Monitor and Controller: exact, resumable, fed by a source of its own through a Faust channel."""
