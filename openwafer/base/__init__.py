"""What every other part may use: errors, units, events, the machine. Standard library and pydantic only."""
