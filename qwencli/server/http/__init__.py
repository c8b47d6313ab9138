"""What holds for every HTTP request, whatever the API."""
