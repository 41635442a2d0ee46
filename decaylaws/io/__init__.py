"""Files: text, YAML and tables, written whole or not at all."""
