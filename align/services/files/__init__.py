"""Files to read, wherever they lie: on this machine, in S3, on web servers.

files       all of them in one way
web_files   web servers, through libcurl; the rules for whom a list may name
file_lists  lists of files, one location per line

Sources of pairs read through this room. It writes nothing, and the only format that it knows is that of lists.
"""
