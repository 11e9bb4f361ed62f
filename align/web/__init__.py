"""What holds for every request: of ours to a server that a stranger names, and of strangers to our servers.

addresses      URLs in normal form, and the addresses that sockets may be opened to
failure        what went wrong, and whether a retry can help
guard          the host names, origins and logins that a server of ours answers
connections    bounds of its connections, in number and in time
"""
