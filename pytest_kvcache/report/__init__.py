"""Results for people: tables, progress, pictures."""
