"""Rules for every request: ours to servers that strangers name, and those of strangers to our servers.

addresses      URLs in normal form, and the addresses that sockets may be opened to
connection     one request of ours on libcurl, within bounds
failure        what went wrong, and whether a retry can help
guard          the host names, origins and logins that a server of ours answers
server         serves an application on granian, within bounds

What a request may reach or cost comes in, whoever sends it. What to ask and when is in `ingest/download` and
`services/files`, and what a server answers is its own.
"""

#: Where servers of ours listen: on this machine only.
HOST = "127.0.0.1"
