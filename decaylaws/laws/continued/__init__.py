"""Laws of continued pre-training: joint in size, tokens and mixture, and replay."""
