"""What servers are and can do: their configurations, readiness, abilities and load. Starts none."""
