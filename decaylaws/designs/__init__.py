"""Which microanneals to run, and why."""
