"""Large bytes by key."""
