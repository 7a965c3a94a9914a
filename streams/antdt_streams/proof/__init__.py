"""What a log proves of itself: replay, audit, parts, waypoints."""
