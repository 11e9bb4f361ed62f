from align.console import track


def test_track_yields_everything_in_order() -> None:
    assert list(track(range(5), what="counting", total=5)) == [0, 1, 2, 3, 4]
