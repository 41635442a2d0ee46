"""Workers that claim runs from the queue, and what they measure of their machine."""
