"""The vendor's names for our host runtime."""
