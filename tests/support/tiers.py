"""Which tests `make test` leaves to other targets: those with one of these marks, by what they are about."""

#: pyproject.toml says what each is. `make test-full` runs the first four; `make test-NAME` each.
TIERS = ("kill", "browser", "cluster", "journeys", "tools", "numerics")


def tier(item):
    """The tier of a test, or an empty text."""
    return next((name for name in TIERS if item.get_closest_marker(name)), "")
