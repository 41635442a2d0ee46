"""What a user writes: study.yaml, groups of sources, quality buckets."""
