"""Stories from the user's own files, with their characters renamed."""
