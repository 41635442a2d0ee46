"""The only place that spends compute: proxies, microanneals and the full-scale launch, on torch."""
