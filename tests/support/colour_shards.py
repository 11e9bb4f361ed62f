"""data/shards of one-coloured pictures: what search should find is plain to see."""

from align.formats.shards import Sample
from tests.support.colours import COLOURS, square
from tests.support.shard_folder import write_shards


def image_id(key):
    """As long as a sha256, and known without the picture."""
    return f"{key:0>64}"


def write(root, *, image_px=48):
    """Writes three shades of each colour: two in train, one in test, none in val. Returns the folder."""
    samples = {"train": [], "val": [], "test": []}
    for number, (colour, shade) in enumerate((name, shade) for name in COLOURS for shade in (0, 20, 40)):
        key = f"{number:09d}"
        image = square(colour, shade=shade, side_px=image_px)
        keys = (key, f"1{key[1:]}")
        sample = Sample(key, image_id(key), image, keys, (f"a {colour} square", f"{colour} shade {shade}"))
        samples["test" if shade == 40 else "train"].append(sample)
    write_shards(root, {name: [of_split] for name, of_split in samples.items() if of_split}, image_px=image_px)
    return root
