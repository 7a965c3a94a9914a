"""The pure core of the Controller: measurements in, decisions out. No clock, randomness, logging or network."""
