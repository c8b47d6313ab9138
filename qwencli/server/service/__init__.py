"""Many requests on one engine."""
