"""Some of the images of a committed evaluation set: the filter's network looks at each, ten a second."""

import io
import json
import tarfile

from align.durable.files import sha256_file


def write(header, out, keep):
    """Writes the set of a header into a folder, which may be its own, with the images whose number and key are kept."""
    members = {}
    with tarfile.open(header.with_suffix(".tar")) as tar:
        for member in tar:
            file = tar.extractfile(member)
            members.setdefault(member.name.partition(".")[0], []).append((member, file.read()))
    kept = [key for number, key in enumerate(members) if keep(number, key)]
    path = out / header.with_suffix(".tar").name
    with tarfile.open(path, "w") as tar:
        for member, data in (one for key in kept for one in members[key]):
            tar.addfile(member, io.BytesIO(data))
    meta = json.loads(header.read_text()) | {"num_images": len(kept), "sha256": sha256_file(path)}
    (out / header.name).write_text(json.dumps(meta))
