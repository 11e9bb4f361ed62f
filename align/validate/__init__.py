"""How the quality gates work (`align validate`, `align validate_shards`): measure, expect, judge, show."""
