"""Web archives: WARC, WAT and ARC, whole or damaged, with the codings that servers used. Pages are read by `pages`."""
