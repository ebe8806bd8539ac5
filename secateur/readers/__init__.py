"""Reading what users have into splits."""
