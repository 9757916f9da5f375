"""What MemoryX does: pages of parameters and optimizer state in memory and on disk, streamed and updated in place."""
