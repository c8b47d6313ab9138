"""What holds for every HTTP request. No API is known here."""
