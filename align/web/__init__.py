"""What holds for every request to a server that a stranger names, be it for a picture or for an archive.

addresses    URLs in normal form, and the addresses that sockets may be opened to
failure      what went wrong, and whether a retry can help
"""
