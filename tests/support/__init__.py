"""What several test files share: servers, small data, small models."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
