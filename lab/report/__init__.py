"""Tables, pictures, verdicts: what results say."""
